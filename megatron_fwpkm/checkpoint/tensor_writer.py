"""Writes tensors into a folder as torch.distributed.checkpoint does, piece by piece, in one process without groups.

What is written need not be in memory: a piece is read when its turn comes, and gone before the next one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType


@dataclass(frozen=True)
class RowPiece:
    """Some rows of a tensor, one after the other.

    Attributes:
        first: number of its first row in the whole tensor.
        rows: how many there are.
        read: gives them, [rows, ...].
    """

    first: int
    rows: int
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is to be written.

    Attributes:
        shape: of the whole.
        dtype: of its numbers.
        pieces: all of its rows, each once.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[RowPiece, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its numbers."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def whole(shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[], Tensor]) -> PlannedTensor:
    """A tensor that is read in one piece."""
    return PlannedTensor(shape, dtype, (RowPiece(0, shape[0], read),))


def write_tensors(
    folder: Path, tensors: Mapping[str, PlannedTensor], written: Callable[[int], object] = lambda size: None
) -> None:
    """Write tensors by key into a folder, which is made.

    Args:
        folder: what `dcp.load` and Megatron's dist_checkpointing read afterwards.
        tensors: what to write; a tensor has at least one axis.
        written: called with the bytes of every piece that was read and is about to be on disk.

    Raises:
        OSError: the folder cannot be written.
        Exception: whatever reading a piece raises.
    """
    writer = dcp.FileSystemWriter(folder, thread_count=1)
    empty = {key: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for key, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            dcp.save(empty, storage_writer=writer, planner=_PiecePlanner(tensors, written), no_dist=True)
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None


class _PiecePlanner(dcp.DefaultSavePlanner):
    """Plans the pieces of tensors, and reads each when it is asked for it."""

    def __init__(self, tensors: Mapping[str, PlannedTensor], written: Callable[[int], object]) -> None:
        super().__init__()
        self._tensors, self._written = tensors, written
        self._last = torch.empty(0)

    def create_local_plan(self) -> SavePlan:
        """An item for every piece."""
        items = [_item(key, tensor, piece) for key, tensor in self._tensors.items() for piece in tensor.pieces]
        self.plan = SavePlan(items, planner_data=self.mappings)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        """The numbers of a piece."""
        index = write_item.index
        assert index.offset is not None
        planned = self._tensors[index.fqn]
        piece = next(piece for piece in planned.pieces if piece.first == index.offset[0])
        found = piece.read()
        assert found.dtype == planned.dtype and found.shape == (piece.rows, *planned.shape[1:]), index.fqn
        self._written(found.numel() * found.itemsize)
        # torch's writer refers to the last piece of every tensor until the end, which would be most of a model.
        self._last.untyped_storage().resize_(0)
        self._last = found.clone(memory_format=torch.contiguous_format)
        return self._last


def _item(key: str, tensor: PlannedTensor, piece: RowPiece) -> WriteItem:
    """What torch.distributed.checkpoint needs to know of a piece."""
    others = tensor.shape[1:]
    offsets = torch.Size([piece.first, *(0 for _ in others)])
    return WriteItem(
        index=MetadataIndex(key, offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=torch.Size([piece.rows, *others])),
            properties=TensorProperties(dtype=tensor.dtype),
            size=torch.Size(tensor.shape),
        ),
    )
