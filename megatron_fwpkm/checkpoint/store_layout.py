"""Keys of stored tensors, and what a folder of torch.distributed.checkpoint holds. Needs no Megatron."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ..ops import PendingTokens

PENDING_FIELDS = tuple(field.name for field in fields(PendingTokens))
"""Names of the tensors of waiting tokens."""


def key_of(layer_number: int, replica: int, name: str) -> str:
    """Key of one tensor in the store."""
    return f"layer{layer_number}/replica{replica}/{name}"


def stored_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """The tensors in a folder by key, from its metadata alone.

    Raises ValueError for a folder without metadata.
    """
    try:
        metadata: Metadata = dcp.FileSystemReader(folder).read_metadata()
    except (OSError, EOFError) as error:
        raise ValueError(f"{folder} contains no saved tensors: {error}") from error
    return {k: v for k, v in metadata.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}


def replica_count(stored: dict[str, TensorStorageMetadata], layer_number: int) -> int:
    """Number of replicas whose memory of a layer is stored."""
    return sum(k.startswith(f"layer{layer_number}/replica") and k.endswith("/values") for k in stored)
