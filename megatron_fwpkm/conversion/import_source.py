"""The command `import`: which of its ways a folder takes, and what is said afterwards."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from ..hf import FwPKMHFConfig
from ..hf.json_files import read_json_object
from .convert_options import ONLY_HF, ONLY_SAKANA, ImportOptions


def import_model(options: ImportOptions) -> str:
    """Import what a folder holds; returns what to tell the user.

    Raises:
        ValueError: nothing that can be imported, options of the other way, or as `import_export` and `import_sakana`.
    """
    source = options.source or _told_by(Path(options.checkpoint))
    _refuse_others(options, source)
    if source == "sakana":
        from .sakana_import import import_sakana

        return f"imported to {import_sakana(options)}"
    from .megatron_import import import_export

    folder = import_export(options)
    return (
        f"imported to {folder}, which has no optimizer state. Continue with\n"
        f"python pretrain.py --config {folder / 'config.yaml'} --load {folder.parent} --data-path ... --save ..."
    )


def _told_by(folder: Path) -> str:
    """`hf` or `sakana`, by config.json; what is no folder of a model is left to the way for ours to refuse."""
    file = folder / "config.json"
    if not file.is_file():
        if not folder.is_dir():
            raise ValueError(f"--checkpoint {folder} is not a folder")
        raise ValueError(f"{folder} contains no config.json: --checkpoint must be an export or a released model")
    found = read_json_object(file)
    theirs = any(name.startswith(("fwpkm_", "pkm_")) for name in found)
    return "sakana" if theirs and found.get("model_type") != FwPKMHFConfig.model_type else "hf"


def _refuse_others(options: ImportOptions, source: str) -> None:
    """Raise ValueError for options that mean nothing for this source."""
    others = ONLY_SAKANA if source == "hf" else ONLY_HF
    defaults = {field.name: field.default for field in fields(options)}
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(options, name) != defaults[name]]
    if given:
        raise ValueError(f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect with --from {source}")
