"""megatron.core's datasets with caches that are whole or not there, and without open files.

megatron.core writes the orders of a dataset (documents, samples, shuffling) straight to their final names, takes any
that exist, and blames every failure on missing rights. A run that dies meanwhile, or a full disk, would stop all later
ones.
"""

from __future__ import annotations

import copy
import errno
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset

from ..indexed.mapped_files import map_file, without_descriptor

_DESCRIPTION = "description.txt"
DOCUMENT_ORDERS = ("document_index.npy", "sample_index.npy", "shuffle_index.npy")
"""Cached arrays of a dataset."""
BLEND_ORDERS = ("dataset_index.npy", "dataset_sample_index.npy")
"""Cached arrays of a blend."""

logger = logging.getLogger(__name__)


class MappedTokens(IndexedDataset):
    """A .bin and .idx pair mapped into memory; megatron.core's own keeps three descriptors of each open."""

    def initialize(self, path_prefix: str, multimodal: bool, mmap: bool, *args: Any, **kwargs: Any) -> None:
        """Open the pair; called when the dataset is made and when it is unpickled."""
        super().initialize(path_prefix, multimodal, False, *args, **kwargs)
        self.bin_reader = _MappedTokensReader(f"{path_prefix}.bin")
        index = self.index
        whole = map_file(f"{path_prefix}.idx")
        for name in ("sequence_lengths", "sequence_pointers", "document_indices"):
            old = getattr(index, name)
            offset = old.__array_interface__["data"][0] - index.bin_buffer_mmap.__array_interface__["data"][0]
            setattr(index, name, np.frombuffer(whole.data, old.dtype, old.size, offset))
        del old
        index.bin_buffer = memoryview(whole.data)
        del index.bin_buffer_mmap


class _MappedTokensReader:
    """Reads tokens of a mapped .bin file, as megatron.core's readers do."""

    def __init__(self, path: str) -> None:
        self._bytes = map_file(path)

    def read(self, dtype: type[np.number], count: int, offset: int) -> np.ndarray:
        """`count` numbers from byte `offset` on."""
        return np.frombuffer(self._bytes.data, dtype, count, offset)


class WholeBlend(BlendedDataset):
    """megatron.core's blend with a whole cache."""

    def _build_indices(self) -> Any:
        return whole_orders(self, self.split.name, BLEND_ORDERS, super()._build_indices)


def whole_orders(
    dataset: Any, split: str, names: Sequence[str], build: Callable[[], Sequence[np.ndarray]]
) -> tuple[np.ndarray, ...]:
    """What `build` reads from a dataset's cache, or makes and writes there: all of it or nothing.

    Args:
        dataset: has `config.path_to_cache` and `unique_description_hash`.
        split: name of the split.
        names: ends of the names of the cached arrays.
        build: megatron.core's own method. It writes into `config.path_to_cache`, which is a private folder meanwhile.

    Raises:
        ValueError: the disk of the cache is full, or the cache cannot be written.
    """
    shared = dataset.config
    if shared.path_to_cache is None:
        return tuple(build())
    folder = Path(shared.path_to_cache)
    base = f"{dataset.unique_description_hash}-{type(dataset).__name__}-{split}"
    files = [f"{base}-{name}" for name in (*names, _DESCRIPTION)]
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0 or _is_whole(folder, files):
        return tuple(without_descriptor(array) for array in build())
    private: str | None = None
    try:
        private = tempfile.mkdtemp(prefix=".being-built-", dir=folder)
        dataset.config = copy.copy(shared)
        dataset.config.path_to_cache = private
        orders = tuple(build())
        for name in files:  # the description last: with it the cache counts
            os.replace(Path(private) / name, folder / name)
        return orders
    except OSError as error:
        raise ValueError(_complaint(folder, error)) from error
    finally:
        dataset.config = shared
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)


def _is_whole(folder: Path, files: Sequence[str]) -> bool:
    """Whether every file of a cache is there and has the length that its head tells."""
    if not (folder / files[-1]).is_file():
        return False
    for name in files[:-1]:
        if not _is_whole_array(folder / name):
            logger.info("%s is missing or truncated; building the cache again", folder / name)
            return False
    return True


def _is_whole_array(path: Path) -> bool:
    try:
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            return stream.tell() + math.prod(shape) * dtype.itemsize == os.fstat(stream.fileno()).st_size
    except (OSError, ValueError):
        return False


def _complaint(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"the disk is too full to write the index cache in {folder} ({error.strerror}); free space there, or set "
            "--data-cache-path to a folder on another disk"
        )
    return f"the index cache in {folder} cannot be written ({error}); set --data-cache-path to a writable folder"
