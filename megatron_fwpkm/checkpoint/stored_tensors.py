"""Tensors of a torch.distributed.checkpoint folder that are read one at a time, without process groups."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata


class StoredTensors(Mapping[str, Tensor]):
    """Whole tensors by name. Each is read from the files when it is looked up, and belongs to the caller alone.

    Nothing is kept, so that a model of any size can be passed through a process. Looking a name up twice reads twice.
    """

    def __init__(self, folder: Path, keys: Mapping[str, str]) -> None:
        """`keys` are the keys of the folder's tensors, by the names that they have here."""
        self._keys = dict(keys)
        self._folder, self._reader = folder, _Reader(folder)

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor, on the CPU and in its stored dtype.

        Raises:
            KeyError: there is no such name.
            ValueError: the files cannot be read.
        """
        key = self._keys[name]
        described = self._reader.metadata.state_dict_metadata[key]
        assert isinstance(described, TensorStorageMetadata), f"{key} is no tensor"
        found = {key: torch.empty(described.size, dtype=described.properties.dtype)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            try:
                dcp.load(found, storage_reader=self._reader, no_dist=True)
            except CheckpointException as error:
                reason = next(iter(error.failures.values()))[0]
                raise ValueError(
                    f"{self._folder} is damaged or was deleted in the meantime: {key} cannot be read ({reason})"
                ) from error
        return found[key]

    def __iter__(self) -> Iterator[str]:
        """All names."""
        return iter(self._keys)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._keys)


class _Reader(dcp.FileSystemReader):
    """Reads the metadata once: it describes every shard of every tensor, and reading a tensor needs it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.metadata: Metadata = super().read_metadata()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What was read before."""
        return self.metadata
