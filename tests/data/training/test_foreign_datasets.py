"""Datasets of other tools: each rule is the same for training, merging, splitting and inspection."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_fwpkm.data.indexed.inspection import inspect_dataset
from megatron_fwpkm.data.indexed.merge_and_split import merge, split
from megatron_fwpkm.data.preprocess.run import PreprocessOptions, preprocess
from megatron_fwpkm.data.tokenizers import build_tokenizer
from megatron_fwpkm.data.tokenizers.train_tokenizer import TokenizerOptions, train_tokenizer
from megatron_fwpkm.data.training.datasets import build_datasets

from ..conftest import WriteDataset
from .test_datasets import NULL, configuration, numbered


@pytest.mark.parametrize(
    ("multimodal", "message"),
    [
        (True, r"theirs\.idx is a multimodal index, with a mode for each of its 4 sequences"),
        (False, r"theirs\.idx has 4 sequences in 2 documents, but each document must be one sequence"),
    ],
)
def test_what_is_no_text_in_whole_documents(tmp_path: Path, multimodal: bool, message: str) -> None:
    prefix = str(tmp_path / "theirs")
    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.uint16, multimodal=multimodal)
    for _ in range(2):
        builder.add_document(np.arange(60), [30, 30], [0, 1] if multimodal else None)
    builder.finalize(prefix + ".idx")
    config = configuration(dataclasses.replace(NULL, data_path=(prefix,), split="1,0,0"), eval_iters=0)
    for refused in (
        lambda: build_datasets(config, build_tokenizer(NULL)),
        lambda: inspect_dataset(prefix),
        lambda: merge([prefix], str(tmp_path / "merged")),
        lambda: split(prefix, str(tmp_path / "split"), [1, 1, 0]),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_a_missing_description_is_not_another_tokenizer(tmp_path: Path, write_dataset: WriteDataset) -> None:
    null = build_tokenizer(NULL)
    with_one, without = write_dataset("with", [[1]], null), write_dataset("without", [[2]], null)
    os.remove(f"{without}.json")
    for inputs in ([with_one, without], [without, with_one]):
        with pytest.raises(ValueError, match=r"/without has no description .* compared with that of .*/with;"):
            merge(inputs, str(tmp_path / "merged"))
    assert merge([without], str(tmp_path / "merged")).outputs[0][1:] == (1, 1)


def test_a_dataset_is_looked_at_and_warned_of_once(
    write_dataset: WriteDataset, caplog: pytest.LogCaptureFixture
) -> None:
    null = build_tokenizer(NULL)
    logging.getLogger("megatron_fwpkm").propagate = True
    prefix = write_dataset("numbers", numbered(300), null)
    os.remove(f"{prefix}.json")
    for paths in ({"data_path": (prefix,)}, {"train_data_path": (prefix,), "valid_data_path": (prefix,)}):
        caplog.clear()
        build_datasets(configuration(dataclasses.replace(NULL, split="1,1,0", **paths)), null)
        assert len([message for message in caplog.messages if "has no sidecar" in message]) == 1


@pytest.mark.parametrize("prefix", ["", "{}/", "{}/.", "{}/.."])
def test_an_output_prefix_is_more_than_a_folder(tmp_path: Path, write_dataset: WriteDataset, prefix: str) -> None:
    source, prefix = write_dataset("one", [[1], [2]], build_tokenizer(NULL)), prefix.format(tmp_path)
    before = sorted(tmp_path.iterdir())
    for refused in (
        lambda: merge([source], prefix),
        lambda: split(source, prefix, [1, 1, 0]),
        lambda: preprocess(PreprocessOptions((f"{source}.json",), prefix, NULL)),
        lambda: train_tokenizer(TokenizerOptions((f"{source}.json",), prefix, 300)),
    ):
        with pytest.raises(ValueError, match="--output-prefix '.*' is a folder; append the beginning of the file"):
            refused()
    assert sorted(tmp_path.iterdir()) == before
