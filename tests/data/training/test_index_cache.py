"""Caches of the orders of a dataset are whole or built anew, and datasets keep no file open."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder

from megatron_fwpkm.data.indexed.mapped_files import map_array, map_file, without_descriptor
from megatron_fwpkm.data.indexed.merge_and_split import merge
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer
from megatron_fwpkm.data.training import datasets
from megatron_fwpkm.data.training.datasets import ITEM_KEYS, build_datasets
from tests.spawned_ranks import run_distributed

from ..conftest import WriteDataset
from .test_datasets import NULL, configuration, numbered


@pytest.fixture(scope="module")
def null() -> Tokenizer:
    return build_tokenizer(NULL)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process may open so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def build(prefixes: list[str], null: Tokenizer, **data: Any) -> list[dict[str, torch.Tensor]]:
    """The first training windows of a blend."""
    path = tuple(word for prefix in prefixes for word in ("1", prefix)) if len(prefixes) > 1 else tuple(prefixes)
    config = configuration(dataclasses.replace(NULL, data_path=path, split="6,2,2", **data))
    return [build_datasets(config, null)[0][index] for index in range(20)]


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in ITEM_KEYS)


def orders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("index_cache/*/*") if path.suffix == ".npy")


@pytest.mark.slow
def test_a_blend_of_many_datasets_needs_few_descriptors(write_dataset: WriteDataset, null: Tokenizer) -> None:
    prefixes = [write_dataset(f"part{i}", numbered(60, first=i), null) for i in range(32)]
    with descriptors_left(30):
        cold = build(prefixes, null)
        warm = build(prefixes, null)
    assert same(cold, warm)


def test_megatrons_blends_ask_for_a_rank(
    write_dataset: WriteDataset, null: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no process group exists: so they are not cached there."""
    prefixes = [write_dataset(f"part{i}", numbered(60, first=i), null) for i in range(2)]
    monkeypatch.setattr(datasets, "_Builder", BlendedMegatronDatasetBuilder)
    try:
        build(prefixes, null)
    except ValueError as error:
        assert "process group has not been initialized" in str(error)
    else:
        pytest.skip("this release does not ask")


def test_datasets_keep_no_file_open(write_dataset: WriteDataset, null: Tokenizer, tmp_path: Path) -> None:
    prefix = write_dataset("numbers", numbered(100), null)
    config = configuration(dataclasses.replace(NULL, data_path=(prefix,), split="6,2,2"))
    for _ in ("cold", "warm"):
        before = open_files()
        built = build_datasets(config, null)
        assert built[0][0]["tokens"].shape == (16,)
        assert open_files() == before
    again = pickle.loads(pickle.dumps(built[0]))  # as workers that are spawned get it
    assert torch.equal(again[3]["tokens"], built[0][3]["tokens"])


def test_merging_many_datasets_needs_few_descriptors(
    write_dataset: WriteDataset, null: Tokenizer, tmp_path: Path
) -> None:
    prefixes = [write_dataset(f"part{i}", numbered(3, first=i), null) for i in range(60)]
    with descriptors_left(20):
        report = merge(prefixes, str(tmp_path / "whole"))
    assert report.outputs[0][1:] == (180, 180 * 7)


@pytest.mark.parametrize("sizes", [(0, -1), pytest.param((5, 64), marks=pytest.mark.slow)])
def test_every_cached_file_that_was_cut_short_is_built_anew(
    sizes: tuple[int, ...],
    write_dataset: WriteDataset,
    null: Tokenizer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prefix = write_dataset("numbers", numbered(100), null)
    expected = build([prefix], null)
    files = orders(tmp_path)
    assert len(files) == 9  # three orders of three splits
    contents = {path: path.read_bytes() for path in files}
    for path in files:
        for size in sizes:
            path.write_bytes(contents[path][:size])
            with caplog.at_level(logging.INFO):
                assert same(build([prefix], null), expected)
            assert f"{path} is missing or truncated; building the cache again" in caplog.text
            caplog.clear()
            assert path.read_bytes() == contents[path]
    assert orders(tmp_path) == files and not list(tmp_path.glob("index_cache/*/.being-built*"))


@pytest.mark.parametrize(
    "number, message",
    [
        (errno.ENOSPC, r"the disk is too full to write the index cache in .*--data-cache-path"),
        (errno.EACCES, r"the index cache in .* cannot be written .*Permission denied.*--data-cache-path"),
    ],
)
def test_a_cache_that_cannot_be_written_is_not_there(
    write_dataset: WriteDataset,
    null: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    message: str,
) -> None:
    prefix = write_dataset("numbers", numbered(100), null)
    save, calls = np.save, []

    def failing(file: Any, array: np.ndarray, **kwargs: Any) -> None:
        calls.append(file)
        save(file, array[: len(array) // 2], **kwargs)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(np, "save", failing)
    with pytest.raises(ValueError, match=message):
        build([prefix], null)
    assert orders(tmp_path) == [] and not list(tmp_path.glob("index_cache/*/.*"))
    monkeypatch.undo()
    assert same(build([prefix], null), build([prefix], null))


def _blend_twice(rank: int, world_size: int, prefixes: list[str], folder: Path) -> bool:
    first = build(prefixes, build_tokenizer(NULL))
    torch.distributed.barrier()
    if rank == 0:
        blends = [path for path in orders(folder) if "WholeBlend" in path.name]
        assert len(blends) == 6
        blends[0].write_bytes(blends[0].read_bytes()[:-1])
    torch.distributed.barrier()
    return same(first, build(prefixes, build_tokenizer(NULL)))


@pytest.mark.slow
def test_blends_of_several_ranks_are_cached_whole(write_dataset: WriteDataset, null: Tokenizer, tmp_path: Path) -> None:
    prefixes = [write_dataset(f"part{i}", numbered(60, first=100 * i), null) for i in range(2)]
    assert run_distributed(_blend_twice, 2, prefixes, tmp_path) == [True, True]


def test_mapped_files(tmp_path: Path) -> None:
    path, empty = tmp_path / "numbers", tmp_path / "empty"
    path.write_bytes(np.arange(10, dtype=np.int32).tobytes())
    empty.touch()
    assert map_array(path, np.int32, 8, 3).tolist() == [2, 3, 4]
    assert map_file(empty).size == 0
    with pytest.raises(ValueError, match="read-only"):
        map_file(path)[0] = 1
    with pytest.raises(ValueError, match="smaller than requested"):
        map_array(path, np.int32, 0, 11)
    mapped = np.memmap(path, np.int32, "r", offset=4, shape=(3, 3))
    assert without_descriptor(mapped).tolist() == mapped.tolist()
    assert without_descriptor(array := np.zeros(3)) is array
