"""Keys of stored tensors, and what a folder of torch.distributed.checkpoint holds. Needs no Megatron."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ..ops import PendingTokens

PENDING_FIELDS = tuple(field.name for field in fields(PendingTokens))
"""Names of the tensors of waiting tokens."""
DESCRIPTION_NAME = "store.json"


def key_of(layer_number: int, replica: int, name: str) -> str:
    """Key of one tensor in the store."""
    return f"layer{layer_number}/replica{replica}/{name}"


def name_of(key: str) -> str:
    """The tensor's name in its key: what stands behind layer and replica."""
    return key.split("/", 2)[2]


def stored_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """The tensors in a folder by key, from its metadata alone.

    Raises ValueError for a folder without metadata.
    """
    try:
        metadata: Metadata = dcp.FileSystemReader(folder).read_metadata()
    except (OSError, EOFError) as error:
        raise ValueError(f"{folder} contains no saved tensors: {error}") from error
    return {k: v for k, v in metadata.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}


def replicas_with_tables(stored: dict[str, TensorStorageMetadata], layer_number: int) -> tuple[int, ...]:
    """Numbers of the replicas whose tables of a layer are stored, ascending."""
    pattern = re.compile(rf"layer{layer_number}/replica(\d+)/(?!pending/|rounding$)")
    return tuple(sorted({int(match[1]) for key in stored if (match := pattern.match(key))}))


def tables_of(stored: dict[str, TensorStorageMetadata], layer_number: int, replica: int) -> tuple[str, ...]:
    """Names of the tables of a layer that are stored of a replica."""
    names = (name_of(key) for key in stored if key.startswith(key_of(layer_number, replica, "")))
    return tuple(name for name in names if name != "rounding" and not name.startswith("pending/"))


@dataclass(frozen=True)
class StoreDescription:
    """Content of store.json: how the memories were saved."""

    replicas: int
    """Replicas of the run that saved."""
    tensor_parallel: int
    initial_memory_seed: int
    saved_replicas: tuple[int, ...]
    """Numbers of those whose tables are stored; waiting tokens are stored of every replica."""
    replicas_equal: bool
    """Whether all replicas had the tables that are stored, after they were averaged."""

    def write(self, folder: Path) -> None:
        """Write store.json."""
        text = json.dumps(asdict(self), indent=2)
        (folder / DESCRIPTION_NAME).write_text(text + "\n", encoding="utf-8")


def read_description(folder: Path) -> StoreDescription:
    """What store.json says; stores from before --fwpkm-save-replicas contain the memories of all replicas."""
    content = json.loads((folder / DESCRIPTION_NAME).read_text(encoding="utf-8"))
    saved = tuple(content.pop("saved_replicas", range(content["replicas"])))
    return StoreDescription(**{"replicas_equal": False, **content}, saved_replicas=saved)
