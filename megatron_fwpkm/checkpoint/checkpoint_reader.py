"""A checkpoint in one process, without process groups: what conversion and evaluation start from.

Tensors are read when they are looked up, one at a time: see `StoredTensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..config import PretrainConfig
from ..config.memories import memory_numbers
from ..ops import PendingTokens
from .manager import resolve_checkpoint
from .record import FAST_WEIGHTS_FOLDER, MODEL_FOLDER, read_record
from .saved_config import read_saved_config
from .store_layout import (
    DESCRIPTION_NAME,
    PENDING_FIELDS,
    key_of,
    read_description,
    replicas_with_tables,
    stored_tensors,
    tables_of,
)
from .stored_tensors import StoredTensors


class StoredMemory(NamedTuple):
    """A memory as it was saved."""

    tables: Mapping[str, Tensor]
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
    slow: Mapping[str, Tensor]
    """Whole tensors under Megatron's names, for example decoder.layers.0.self_attention.linear_qkv.weight."""
    fast: Mapping[int, StoredMemory]
    """Whole tables of one replica by layer number (counted from 1)."""
    tokenizer_path: Path | None
    """The tokenizer's copy, None for a kind without files."""
    documents: dict[str, bool | None] = field(default_factory=dict)
    """As in the record: whether training documents begin with BOS and end with EOD."""
    replica: int = 0
    """The data-parallel replica whose tables are in `fast`."""
    consumed_tokens: int = 0
    """Tokens that the run has trained on."""
    validation: dict[str, float] | None = None
    """The last validation: `iteration` and `lm_loss`; None where there was none, or an earlier version saved."""
    versions: dict[str, str] = field(default_factory=dict)
    """Releases of the libraries that the run trained with."""


def read_checkpoint(path: str | Path, replica: int = 0) -> CheckpointContents:
    """Open a checkpoint folder, or the latest of a run's --save folder; its tensors are whole, and on the CPU.

    Args:
        path: the folder.
        replica: the data-parallel replica whose fast weights are wanted.

    Raises:
        ValueError: the folder is not a checkpoint or is incomplete, with the reason; or it has no such replica.
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
        slow=_slow_weights(folder / MODEL_FOLDER),
        fast=_fast_weights(folder / FAST_WEIGHTS_FOLDER, memory_numbers(config), replica),
        tokenizer_path=tokenizer,
        documents=record.documents,
        replica=replica,
        consumed_tokens=record.consumed_tokens,
        validation=record.loop.get("validation"),
        versions=record.versions,
    )


def _slow_weights(folder: Path) -> StoredTensors:
    """The weights among what is stored; the optimizer's states stand beside them."""
    return StoredTensors(folder, {key: key for key in stored_tensors(folder) if not key.startswith("optimizer.")})


def _fast_weights(folder: Path, layer_numbers: tuple[int, ...], replica: int) -> dict[int, StoredMemory]:
    """A replica's memory of every layer."""
    if not layer_numbers:
        return {}
    stored = stored_tensors(folder)
    found = {}
    for number in layer_numbers:
        source = _replica_with_tables(folder, stored, number, replica)
        keys = {name: key_of(number, source, name) for name in tables_of(stored, number, source)}
        pending_keys = {name: key_of(number, replica, f"pending/{name}") for name in PENDING_FIELDS}
        waiting = {name: key for name, key in pending_keys.items() if key in stored}
        pending = PendingTokens(**StoredTensors(folder, waiting)) if waiting else None
        found[number] = StoredMemory(StoredTensors(folder, keys), pending)
    return found


def _replica_with_tables(
    folder: Path, stored: dict[str, TensorStorageMetadata], layer_number: int, replica: int
) -> int:
    """The replica under whose number a replica's tables are stored: where all are equal, one copy is.

    Raises:
        ValueError: there are none.
    """
    there = replicas_with_tables(stored, layer_number)
    if not there:
        raise ValueError(f"{folder} contains no memory for layer {layer_number}")
    if replica in there:
        return replica
    total = 1 + max(there)
    if (folder / DESCRIPTION_NAME).is_file():
        description = read_description(folder)
        total = description.replicas
        if description.replicas_equal and replica < total:
            return there[0]
    if replica >= total:
        count = "1 replica, number 0" if total == 1 else f"{total} replicas, numbers 0 to {total - 1}"
        raise ValueError(f"--replica {replica} does not exist: {folder.parent} was saved by a run with {count}")
    numbers = ", ".join(map(str, there))
    raise ValueError(
        f"{folder.parent} does not contain the memory of --replica {replica}: of the {total} replicas of the run it "
        f"has those of {numbers} (--fwpkm-save-replicas); choose one of them"
    )
