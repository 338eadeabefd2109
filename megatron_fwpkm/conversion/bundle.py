"""The model's code as files of one folder: what an export carries of this package.

An export is used where this package is not installed. Its code is what the model's module imports of the package,
directly and by way of others, each module as a file beside the others; nothing but the names in imports changes.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from ..hf.kind_modules import KIND_MODULES

PACKAGE = Path(__file__).parent.parent
ENTRIES = ("hf/configuration_fwpkm.py", "hf/modeling_fwpkm.py")
AUTO_MAP = {
    "AutoConfig": "configuration_fwpkm.FwPKMHFConfig",
    "AutoModel": "modeling_fwpkm.FwPKMModel",
    "AutoModelForCausalLM": "modeling_fwpkm.FwPKMForCausalLM",
}
"""What Transformers' classes load of the bundle."""


def write_bundle(folder: Path, kinds: Iterable[str] = ()) -> None:
    """Write the code of a model whose layers are of these kinds into a folder, with its licence."""
    (folder / "LICENSE").write_text(license_text(), encoding="utf-8")
    for name, text in bundled_files(kinds).items():
        (folder / name).write_text(text, encoding="utf-8")


def bundled_files(kinds: Iterable[str] = ()) -> dict[str, str]:
    """The model's code: names of files and their texts.

    Args:
        kinds: kinds of the model's layers; the modules of those that come from outside the package join it, and the
            model's own imports them, for them to register themselves.
    """
    files: dict[str, str] = {}
    outside = {path: module for kind in kinds for path, module in _outside(kind).items()}
    waiting, seen = [*(PACKAGE / entry for entry in ENTRIES), *outside], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text, imported = _flattened(path)
        name = f"{_flat_name(path)}.py"
        assert name not in files, f"two modules of the bundle have the name {name}"
        files[name] = text
        waiting += imported
    model = Path(ENTRIES[-1]).name
    for path, module in outside.items():
        files[model] += f"\nfrom .{_flat_name(path)} import {module}  # noqa: E402, F401  (a kind of layer)\n"
    return dict(sorted(files.items()))


def license_text() -> str:
    """The licence of this package's code: from the source tree, or as it was installed."""
    beside = PACKAGE.parent / "LICENSE"
    if (PACKAGE.parent / "pyproject.toml").is_file():
        return beside.read_text(encoding="utf-8")
    text = distribution(PACKAGE.name).read_text("licenses/LICENSE")
    assert text is not None, "installed without its licence"
    return text


def _outside(kind: str) -> dict[Path, str]:
    """The file of a kind's module and the module's name, where the file is not the package's."""
    module = KIND_MODULES[kind].module
    path = Path(inspect.getfile(module))
    return {} if path.is_relative_to(PACKAGE) else {path: module.__name__}


def _flattened(path: Path) -> tuple[str, list[Path]]:
    """A module's text for the folder, and the files of the modules it imports of this package."""
    text = path.read_text(encoding="utf-8")
    lines, imported = text.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom):
            continue
        names = (node.module or "").split(".")
        if not node.level and names[0] != PACKAGE.name:
            continue
        above = path.parents[node.level - 1] if node.level else PACKAGE.parent
        target = above.joinpath(*names).with_suffix(".py")
        assert target.is_file(), f"{path}:{node.lineno} imports of a folder: name the module, for an export to carry it"
        imported.append(target)
        written = re.escape("." * node.level + str(node.module))
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = re.sub(rf"from {written} import", f"from .{_flat_name(target)} import", line)
    return "".join(lines), imported


def _flat_name(path: Path) -> str:
    """`hf/cache.py` is `cache`, `ops/fast_weight_memory/plain.py` is `fast_weight_memory_plain`."""
    if not path.is_relative_to(PACKAGE):
        return path.stem
    return "_".join(path.relative_to(PACKAGE).with_suffix("").parts[1:])
