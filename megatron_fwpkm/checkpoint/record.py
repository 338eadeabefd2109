"""run.json: the description of a checkpoint folder, and the check that the folder is complete."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

FORMAT = 1
RECORD_NAME = "run.json"
CONFIG_NAME = "config.yaml"
MODEL_FOLDER = "model"
FAST_WEIGHTS_FOLDER = "fast_weights"
_LATER = {"documents", "weights_only"}
"""Fields that checkpoints of earlier versions of the format lack."""


@dataclass(frozen=True)
class Layout:
    """The parallel layout that wrote a checkpoint; decides what can be restored bit for bit."""

    world_size: int
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    distributed_optimizer: bool
    bf16: bool

    def __str__(self) -> str:
        """`TP 2, PP 1, DP 2`."""
        return f"TP {self.tensor_parallel}, PP {self.pipeline_parallel}, DP {self.data_parallel}"


@dataclass(frozen=True)
class RunRecord:
    """Content of run.json."""

    iteration: int
    consumed_samples: int
    consumed_tokens: int
    layout: Layout
    vocab_size: int
    padded_vocab_size: int
    tokenizer_hash: str
    """Identity of the tokenizer; empty where nothing tells it."""
    tokenizer_file: str | None
    """Name of the tokenizer's copy in the folder (a file, or a folder of a Hugging Face tokenizer)."""
    loop: dict[str, Any] = field(default_factory=dict)
    """State of the training loop that logs and guards need to go on."""
    versions: dict[str, str] = field(default_factory=dict)
    documents: dict[str, bool | None] = field(default_factory=dict)
    """Whether training documents begin with BOS and end with EOD (`prepend_bos`, `append_eod`); None where the datasets
    disagree or do not say, empty in checkpoints of earlier versions."""
    weights_only: bool = False
    """There are slow and fast weights, but no optimizer state, schedule and random states: it was imported."""
    format: int = FORMAT
    files: dict[str, int] = field(default_factory=dict)
    """Size in bytes of every other file of the folder."""


def write_record(folder: Path, record: RunRecord) -> None:
    """Write run.json as the last file of `folder`, with the sizes of all others."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD_NAME
    }
    text = json.dumps(asdict(replace(record, files=sizes)), indent=2)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")


def amend_record(folder: Path, loop: dict[str, Any]) -> None:
    """Replace values in the `loop` of a published run.json; at any moment the old or the new one is whole."""
    path, partial = folder / RECORD_NAME, folder / f".{RECORD_NAME}.partial"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["loop"] |= loop
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_record(folder: Path) -> RunRecord:
    """The record of a checkpoint folder, after a check that every file is there and has its size.

    Raises ValueError, with the reason, for a folder that is not a checkpoint, is incomplete or has a newer format.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no {RECORD_NAME}{_foreign_hint(folder)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: it is not valid JSON ({error}); use an earlier checkpoint") from error
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path} is not from a checkpoint of megatron_fwpkm: it has no format number")
    if content["format"] != FORMAT:
        raise ValueError(f"{path} has format {content['format']}, but this version only reads format {FORMAT}")
    missing = {f.name for f in fields(RunRecord)} - content.keys() - _LATER
    if missing:
        raise ValueError(f"{path} is damaged: {', '.join(sorted(missing))} missing; use an earlier checkpoint")
    for name, size in content["files"].items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{folder} is incomplete: {name} is missing; use an earlier checkpoint")
        if file.stat().st_size != size:
            raise ValueError(
                f"{folder} is damaged: {name} has {file.stat().st_size} bytes instead of {size}; use an earlier "
                "checkpoint"
            )
    known = {f.name for f in fields(RunRecord)}
    return RunRecord(**{k: v for k, v in content.items() if k in known} | {"layout": Layout(**content["layout"])})


def _foreign_hint(folder: Path) -> str:
    """What the folder appears to be instead."""
    signs = {
        "latest_checkpointed_iteration.txt": "; it looks like a Megatron-LM checkpoint, which cannot be read",
        "model.safetensors": "; it looks like a Hugging Face model: use the checkpoint that it was exported from",
        "model.safetensors.index.json": "; it looks like a Hugging Face model: use the checkpoint that it was "
        "exported from",
    }
    if folder.name.endswith(".partial"):
        return "; the run ended while it was being saved"
    return next((hint for name, hint in signs.items() if (folder / name).exists()), "")
