"""A whole checkpoint in one process, without process groups: what conversion and evaluation start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..config import PretrainConfig
from ..config.memories import memory_numbers
from ..ops import PendingTokens
from .manager import resolve_checkpoint
from .record import FAST_WEIGHTS_FOLDER, MODEL_FOLDER, read_record
from .saved_config import read_saved_config
from .store_layout import PENDING_FIELDS, key_of, name_of, stored_tensors, tables_of


class StoredMemory(NamedTuple):
    """A memory as it was saved."""

    tables: dict[str, Tensor]
    """Whole fast weights by name."""
    pending: PendingTokens | None
    """Tokens that wait to be written."""


@dataclass(frozen=True)
class CheckpointContents:
    """Everything in a checkpoint that defines the model."""

    path: Path
    iteration: int
    config: PretrainConfig
    vocab_size: int
    """Pieces of the tokenizer."""
    padded_vocab_size: int
    """Rows of the saved embedding."""
    slow: dict[str, Tensor]
    """Whole tensors under Megatron's names, for example decoder.layers.0.self_attention.linear_qkv.weight."""
    fast: dict[int, StoredMemory]
    """Whole tables of replica 0 by layer number (counted from 1)."""
    tokenizer_path: Path | None
    """The tokenizer's copy, None for a kind without files."""
    documents: dict[str, bool | None] = field(default_factory=dict)
    """As in the record: whether training documents begin with BOS and end with EOD."""


def read_checkpoint(path: str | Path) -> CheckpointContents:
    """Read a checkpoint folder, or the latest of a run's --save folder, with whole (unsharded) CPU tensors.

    Raises ValueError, with the reason, for a folder that is not a checkpoint or is incomplete.
    """
    folder = resolve_checkpoint(Path(path))
    record = read_record(folder)
    config = read_saved_config(folder)
    tokenizer = folder / record.tokenizer_file if record.tokenizer_file else None
    return CheckpointContents(
        path=folder,
        iteration=record.iteration,
        config=config,
        vocab_size=record.vocab_size,
        padded_vocab_size=record.padded_vocab_size,
        slow=_read_tensors(folder / MODEL_FOLDER, _slow_keys(folder / MODEL_FOLDER)),
        fast=_read_fast_weights(folder / FAST_WEIGHTS_FOLDER, memory_numbers(config)),
        tokenizer_path=tokenizer,
        documents=record.documents,
    )


def _slow_keys(folder: Path) -> dict[str, TensorStorageMetadata]:
    """The weights among what is stored; the optimizer's states stand beside them."""
    return {key: value for key, value in stored_tensors(folder).items() if not key.startswith("optimizer.")}


def _read_tensors(folder: Path, wanted: dict[str, TensorStorageMetadata]) -> dict[str, Tensor]:
    """Whole tensors of the wanted keys."""
    tensors = {key: torch.empty(meta.size, dtype=meta.properties.dtype) for key, meta in wanted.items()}
    dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return tensors


def _read_fast_weights(folder: Path, layer_numbers: tuple[int, ...]) -> dict[int, StoredMemory]:
    """Replica 0's memory of every layer."""
    if not layer_numbers:
        return {}
    stored = stored_tensors(folder)
    found = {}
    for number in layer_numbers:
        tables = tables_of(stored, number, 0)
        if not tables:
            raise ValueError(f"{folder} contains no memory for layer {number}")
        names = [*tables, *(f"pending/{name}" for name in PENDING_FIELDS)]
        wanted = {key: stored[key] for name in names if (key := key_of(number, 0, name)) in stored}
        tensors = {name_of(key): tensor for key, tensor in _read_tensors(folder, wanted).items()}
        waiting = {name.removeprefix("pending/"): t for name, t in tensors.items() if name.startswith("pending/")}
        pending = PendingTokens(**waiting) if waiting else None
        found[number] = StoredMemory({name: tensors[name] for name in tables}, pending)
    return found
