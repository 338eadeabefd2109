"""Windows for training: what stands in them, where documents start, what weighs how much, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

from megatron_fwpkm.config import DataConfig, ModelConfig, NeedleConfig, ParallelConfig, PretrainConfig, TrainingConfig
from megatron_fwpkm.data.indexed.blends import parse_blend
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer
from megatron_fwpkm.data.training.datasets import ITEM_KEYS, build_datasets
from megatron_fwpkm.data.training.needle_dataset import NeedleDataset, overlay_facts
from megatron_fwpkm.data.training.needles import EncodedFact, NeedleSpec
from tests.spawned_ranks import run_distributed

from ..conftest import WriteDataset, novel

NULL = DataConfig(tokenizer_type="NullTokenizer", vocab_size=60000)


def configuration(
    data: DataConfig, *, seq_length: int = 16, needle: NeedleConfig | None = None, **training: Any
) -> PretrainConfig:
    defaults: dict[str, Any] = {"train_iters": 20, "eval_iters": 2, "micro_batch_size": 2}
    return PretrainConfig(
        model=ModelConfig(seq_length=seq_length),
        data=data,
        needle=needle or NeedleConfig(),
        training=TrainingConfig(**(defaults | training)),
    )


def numbered(count: int, length: int = 7, first: int = 0, eod: int | None = None) -> list[list[int]]:
    """Documents of consecutive numbers, so that every token tells where it stood."""
    documents = [list(range(first + i * length, first + (i + 1) * length)) for i in range(count)]
    return documents if eod is None else [document + [eod] for document in documents]


@pytest.fixture(scope="module")
def null() -> Tokenizer:
    return build_tokenizer(NULL)


def novel_config(write_dataset: WriteDataset, tokenizer: Tokenizer, **changes: Any) -> PretrainConfig:
    documents = [tokenizer.encode(part) + [tokenizer.eod] for part in novel(60_000).split("\n\n") if part.strip()]
    data = DataConfig(data_path=(write_dataset("novel", documents, tokenizer),), split="8,1,1")
    needle = changes.pop("needle", NeedleConfig(fraction=0.5, facts=4, answer_weight=5.0))
    return configuration(data, seq_length=changes.pop("seq_length", 128), needle=needle, **changes)


def test_windows_hold_the_corpus(write_dataset: WriteDataset, null: Tokenizer) -> None:
    prefix = write_dataset("numbers", numbered(100), null)
    config = configuration(dataclasses.replace(NULL, data_path=(prefix,), split="9,1,0"), train_iters=10, eval_iters=1)
    train, valid, test = build_datasets(config, null)
    assert valid is not None and test is None
    seen: list[int] = []
    for index in range(len(train)):  # type: ignore[arg-type]
        item = train[index]
        assert tuple(item) == ITEM_KEYS
        assert all(field.shape == (16,) for field in item.values())
        assert torch.equal(item["tokens"][1:], item["labels"][:-1])
        assert item["tokens"].dtype == torch.int64 and item["document_starts"].dtype == torch.bool
        # inside a document every number is followed by the next one
        inside = ~item["document_starts"][1:]
        assert torch.equal(item["tokens"][1:][inside], item["tokens"][:-1][inside] + 1)
        assert torch.equal(item["position_ids"], torch.arange(16)) and bool((item["loss_mask"] == 1).all())
        seen += item["tokens"].tolist()
    assert max(seen) < 630 and len(seen) == len(set(seen)), "training holds its nine tenths, nothing twice in an epoch"
    assert min(valid[0]["tokens"].tolist()) >= 630


@pytest.mark.parametrize("with_eod", [False, True])
def test_document_starts_are_true_boundaries(write_dataset: WriteDataset, null: Tokenizer, with_eod: bool) -> None:
    prefix = write_dataset("numbers", numbered(100, eod=null.eod if with_eod else None), null)
    config = configuration(dataclasses.replace(NULL, data_path=(prefix,), split="1,0,0"), eval_iters=0)
    train, valid, _ = build_datasets(config, null)
    assert valid is None
    for index in range(len(train)):  # type: ignore[arg-type]
        item = train[index]
        expected = (item["tokens"] % 7 == 0) & (item["tokens"] != null.eod)
        expected[0] = True
        assert torch.equal(item["document_starts"], expected)


def test_an_end_of_document_inside_a_sequence_starts_one(write_dataset: WriteDataset, null: Tokenizer) -> None:
    packed = [token for document in numbered(60, eod=null.eod) for token in document]
    prefix = write_dataset("packed", [packed], null)
    train, _, _ = build_datasets(
        configuration(dataclasses.replace(NULL, data_path=(prefix,), split="1,0,0"), eval_iters=0), null
    )
    for index in range(10):
        item = train[index]
        expected = (item["tokens"] % 7 == 0) & (item["tokens"] != null.eod)
        expected[0] = True
        assert torch.equal(item["document_starts"], expected)


@pytest.mark.parametrize("flags", [{"eod_mask_loss": True}, {"reset_position_ids": True}, {}])
def test_masks_and_positions_agree_with_megatron(
    write_dataset: WriteDataset, null: Tokenizer, flags: dict[str, bool]
) -> None:
    prefix = write_dataset("numbers", numbered(60, length=5, eod=null.eod), null)
    data = dataclasses.replace(NULL, data_path=(prefix,), split="1,0,0", **flags)
    train, _, _ = build_datasets(configuration(data, eval_iters=0), null)
    for index in range(10):
        item = train[index]
        _, mask, positions = _get_ltor_masks_and_position_ids(
            item["tokens"], null.eod, data.reset_position_ids, False, data.eod_mask_loss, False
        )
        assert torch.equal(item["loss_mask"], mask)
        assert torch.equal(item["position_ids"], positions)


def test_blends_follow_their_weights(write_dataset: WriteDataset, null: Tokenizer) -> None:
    prefixes = [write_dataset(name, numbered(200, first=first), null) for name, first in (("a", 0), ("b", 20000))]
    words = ("0.75", prefixes[0], "0.25", prefixes[1])
    for data in (
        dataclasses.replace(NULL, data_path=words, split="9,1,0"),
        dataclasses.replace(NULL, train_data_path=words, valid_data_path=(prefixes[1],)),
    ):
        train, valid, _ = build_datasets(configuration(data, train_iters=50, eval_iters=1), null)
        from_b = [int(train[index]["tokens"][0]) >= 20000 for index in range(100)]
        assert sum(from_b) == pytest.approx(25, abs=1)
        assert valid is not None and valid[0]["tokens"].shape == (16,)


def test_more_steps_than_data_go_round(write_dataset: WriteDataset, null: Tokenizer) -> None:
    prefix = write_dataset("numbers", numbered(10), null)
    config = configuration(dataclasses.replace(NULL, data_path=(prefix,), split="1,0,0"), train_iters=40, eval_iters=0)
    train, _, _ = build_datasets(config, null, global_batch_size=3)
    assert len(train) >= 120  # type: ignore[arg-type]


def test_a_rebuilt_corpus_is_not_read_through_its_old_index(
    write_dataset: WriteDataset, null: Tokenizer, tmp_path: Path
) -> None:
    data = dataclasses.replace(NULL, data_path=(str(tmp_path / "numbers"),), split="1,0,0")
    config = configuration(data, eval_iters=0, train_iters=3)
    write_dataset("numbers", numbered(100), null)
    build_datasets(config, null)
    for path in tmp_path.glob("numbers.*"):
        path.unlink()
    write_dataset("numbers", numbered(100, length=3, first=1000), null)
    train, _, _ = build_datasets(config, null)
    assert min(train[0]["tokens"].tolist()) >= 1000


def test_facts_stand_in_both_halves_and_answers_weigh(write_dataset: WriteDataset, tokenizer: Tokenizer) -> None:
    config = novel_config(write_dataset, tokenizer)
    train, valid, test = build_datasets(config, tokenizer)
    assert isinstance(train, NeedleDataset) and isinstance(valid, NeedleDataset) and not isinstance(test, NeedleDataset)
    chosen = 0
    for index in range(len(train)):
        item, plain = train[index], train.base[index]
        if torch.equal(item["tokens"], plain["tokens"]):
            assert all(torch.equal(item[key], plain[key]) for key in ITEM_KEYS)
            continue
        chosen += 1
        text = torch.cat((item["tokens"], item["labels"][-1:])).tolist()
        assert text[1:] == item["labels"].tolist()
        weight = 1 + 5.0 * 128 / 12
        heavy = item["loss_mask"] > 1
        assert torch.allclose(item["loss_mask"], torch.where(heavy, weight, 1.0).float())
        assert int(heavy.sum()) == 12 and not heavy[:63].any()
        assert float(item["loss_mask"].sum() / 128) == pytest.approx(1 + 5.0), (
            "mean loss + 5 * mean loss of the answers"
        )
        # every answered value stood behind the same key in the first half
        predicted = tokenizer.decode(item["labels"][heavy].tolist()).split()
        assert len(predicted) == 12 and set(predicted) <= set(train.spec.value_vocabulary)
        answers = heavy.nonzero().flatten().tolist()
        for begin in range(0, 12, 3):
            first = answers[begin] + 1
            stated = text[first - 2 : first + 3]
            assert any(text[p : p + 5] == stated for p in range(62)), tokenizer.decode(stated)
        assert item["document_starts"].nonzero().tolist() == [[0]]
        assert torch.equal(item["position_ids"], torch.arange(128))
    assert 0.3 < chosen / len(train) < 0.7


@pytest.mark.parametrize("weight", [2.0, 0.0])
def test_weights_count_only_positions_in_the_loss(
    write_dataset: WriteDataset, tokenizer: Tokenizer, weight: float
) -> None:
    config = novel_config(write_dataset, tokenizer, needle=NeedleConfig(fraction=1.0, facts=4, answer_weight=weight))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, eod_mask_loss=True))
    train, _, _ = build_datasets(config, tokenizer)
    found = False
    for index in range(len(train)):  # type: ignore[arg-type]
        item = train[index]
        mask = item["loss_mask"]
        assert torch.equal(mask == 0, item["tokens"] == tokenizer.eod)
        found |= bool((mask == 0).any())
        assert float(mask.sum() / (mask > 0).sum()) == pytest.approx(1 + weight)
    assert found


def test_items_depend_on_seed_and_index_only(write_dataset: WriteDataset, tokenizer: Tokenizer) -> None:
    config = novel_config(write_dataset, tokenizer)
    first, again = (build_datasets(config, tokenizer)[0] for _ in range(2))
    backwards = {index: again[index] for index in reversed(range(12))}
    for index in range(12):
        assert all(torch.equal(first[index][key], backwards[index][key]) for key in ITEM_KEYS)
    reseeded = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=99))
    other = build_datasets(reseeded, tokenizer)[0]
    assert any(not torch.equal(first[index]["tokens"], other[index]["tokens"]) for index in range(12))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), count=st.integers(1, 6), spare=st.integers(0, 9), seed=st.integers(0, 99))
def test_overlaid_facts_never_overlap(data: st.DataObject, count: int, spare: int, seed: int) -> None:
    facts = []
    for number in range(count):
        length = data.draw(st.integers(2, 6))
        facts.append(EncodedFact(tuple(1000 + 10 * number + i for i in range(length)), slice(1, length)))
    half = sum(len(fact.tokens) for fact in facts) + spare
    text = np.arange(2 * half + 1)
    covered, answers = overlay_facts(text, facts, np.random.default_rng(seed))
    words = text.tolist()
    for fact in facts:
        for begin, end in ((0, half), (half, 2 * half + 1)):
            stretch = words[begin:end]
            assert sum(stretch[i : i + len(fact.tokens)] == list(fact.tokens) for i in range(len(stretch))) == 1
    assert int(covered.sum()) == 2 * sum(len(fact.tokens) for fact in facts)
    assert (text[~covered] == np.arange(2 * half + 1)[~covered]).all()
    assert sorted(text[answers]) == sorted(token for fact in facts for token in fact.answer_tokens)
    assert answers.min() > half


@pytest.mark.parametrize(
    ("needle", "message"),
    [
        (NeedleConfig(fraction=1.5), "--needle-fraction 1.5 must be between 0 and 1"),
        (NeedleConfig(fraction=1.0, facts=0), "--needle-facts 0 must be at least 1"),
        (NeedleConfig(fraction=1.0, answer_weight=-1.0), "--needle-answer-weight -1.0 must not be negative"),
        (
            NeedleConfig(fraction=1.0, facts=50),
            r"--needle-facts 50: the sentences need \d+ tokens, but half of --seq-length has 64",
        ),
    ],
)
def test_needles_that_do_not_fit_are_refused(
    write_dataset: WriteDataset, tokenizer: Tokenizer, needle: NeedleConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_datasets(novel_config(write_dataset, tokenizer, needle=needle), tokenizer)


def test_the_advised_number_of_facts_fits(write_dataset: WriteDataset, tokenizer: Tokenizer) -> None:
    config = novel_config(write_dataset, tokenizer, needle=NeedleConfig(fraction=1.0, facts=50))
    with pytest.raises(ValueError, match="use at most") as refused:
        build_datasets(config, tokenizer)
    most = int(str(refused.value).split("at most ")[1].split(",")[0])
    config = dataclasses.replace(config, needle=NeedleConfig(fraction=1.0, facts=most))
    assert len(build_datasets(config, tokenizer)[0][0]["tokens"]) == 128
    spec = NeedleSpec.from_config(config.needle, tokenizer)
    sentence = len(spec.encode_fact(spec.draw(np.random.default_rng(0), 1)[0]).tokens)
    assert (most + 1) * sentence > 64


def test_another_tokenizer_is_refused(write_dataset: WriteDataset, null: Tokenizer, tokenizer: Tokenizer) -> None:
    prefix = write_dataset("numbers", numbered(10), null)
    config = configuration(DataConfig(data_path=(prefix,), split="1,0,0"), eval_iters=0)
    with pytest.raises(ValueError, match=r"made with a different tokenizer \(NullTokenizer, 60001 pieces.*900 pieces"):
        build_datasets(config, tokenizer)


def test_a_dataset_of_another_tool_is_sampled(
    write_dataset: WriteDataset, null: Tokenizer, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = write_dataset("numbers", numbered(300), null)
    os.remove(f"{prefix}.json")
    config = configuration(dataclasses.replace(NULL, data_path=(prefix,), split="1,0,0"), eval_iters=0)
    build_datasets(config, null)
    assert "has no sidecar .json" in caplog.text
    with pytest.raises(ValueError, match=r"token ids from 0 to 2099, but those of the tokenizer are between 0 and 899"):
        build_datasets(config, tokenizer)


def test_the_log_says_how_often_the_data_is_seen(
    write_dataset: WriteDataset, null: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = write_dataset("one", numbered(10), null), write_dataset("two", numbered(20), null)
    logging.getLogger("megatron_fwpkm").propagate = True
    for data in ({"data_path": (two,), "split": "1,1,0"}, {"train_data_path": ("3", one, "1", two)}):
        with caplog.at_level(logging.INFO, logger="megatron_fwpkm"):
            build_datasets(configuration(dataclasses.replace(NULL, **data), eval_iters=0), null)
    assert f"the run uses 640 tokens: 9.14 times the 70 training tokens of {two}" in caplog.messages
    both = f"6.86 times the 70 training tokens of {one}, 1.14 times the 140 training tokens of {two}"
    assert f"the run uses 640 tokens: {both}" in caplog.messages


def test_missing_data_is_refused(write_dataset: WriteDataset, null: Tokenizer, tmp_path: Path) -> None:
    prefix = write_dataset("numbers_text_document", numbered(10), null)
    absent = str(tmp_path / "numbers")
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "no training data: give --data-path PREFIX"),
        ({"valid_data_path": (prefix,)}, "are mutually exclusive|no training data"),
        ({"data_path": (prefix,), "valid_data_path": (prefix,)}, "are mutually exclusive"),
        ({"data_path": (absent,)}, "does not exist; did you mean .*numbers_text_document"),
        ({"data_path": (str(tmp_path / "nubmers_text_document"),)}, r"did you mean \S+/numbers_text_document( or|\?)"),
        ({"data_path": (f"{prefix}.bin",)}, r"give the prefix without \.bin"),
        ({"data_path": (str(tmp_path / "no" / "x"),)}, "does not exist"),
        ({"train_data_path": (prefix,)}, "--eval-iters 2 needs --valid-data-path"),
        ({"data_path": (prefix,)}, "has no documents for validation \\(of 10 in total\\); change --split 969,30,1"),
        ({"data_path": (prefix,), "split": "0,1,1"}, "has no documents for training"),
        ({"data_path": (prefix,), "split": "9,1"}, "--split '9,1' must be three shares"),
        ({"data_path": (prefix,), "split": "9,one,1"}, "--split '9,one,1' must be three shares"),
        ({"data_path": (prefix,), "split": "0,0,0"}, "--split '0,0,0' must be three shares"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            build_datasets(configuration(dataclasses.replace(NULL, **changes)), null)
    config = configuration(dataclasses.replace(NULL, data_path=(prefix,), split="1,0,0"), train_iters=0, eval_iters=0)
    with pytest.raises(ValueError, match="--train-iters 0 leaves nothing to train"):
        build_datasets(config, null)
    blocked = tmp_path / "file"
    blocked.touch()
    data = dataclasses.replace(NULL, data_path=(prefix,), split="8,1,1", data_cache_path=str(blocked))
    with pytest.raises(ValueError, match="cannot be written; set --data-cache-path"):
        build_datasets(configuration(data), null)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b"], r"give one PREFIX, or WEIGHT PREFIX pairs"),
        (["0.5", "a", "b"], r"give one PREFIX, or WEIGHT PREFIX pairs"),
        (["0.5", "a", "0", "b"], "every weight must be a positive number"),
        (["0.5", "a", "nan", "b"], "every weight must be a positive number"),
        (["0.5", "a", "0.5", "a"], "a dataset is named twice"),
    ],
)
def test_wrong_blends_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_blend("--data-path", words)


def test_blends_are_read() -> None:
    assert parse_blend("--data-path", []) is None
    assert parse_blend("--data-path", ["a"]) == (["a"], None)
    assert parse_blend("--data-path", ["2", "a"]) == (["a"], None)
    assert parse_blend("--data-path", ["2", "a", "1", "b"]) == (["a", "b"], [2.0, 1.0])


def _tokens_on_rank(rank: int, world_size: int, config: PretrainConfig) -> list[list[int]]:
    train, _, _ = build_datasets(config, build_tokenizer(config.data))
    windows = 2 * config.training.train_iters * config.training.micro_batch_size
    assert len(train) >= windows  # type: ignore[arg-type]
    one_replica = dataclasses.replace(config, parallel=ParallelConfig(context_parallel_size=2))
    assert len(build_datasets(one_replica, build_tokenizer(config.data))[0]) < windows  # type: ignore[arg-type]
    return [train[index]["tokens"].tolist() for index in range(6)]


@pytest.mark.slow
def test_ranks_see_the_same_datasets(write_dataset: WriteDataset, null: Tokenizer) -> None:
    prefixes = [write_dataset(name, numbered(200, first=first), null) for name, first in (("a", 0), ("b", 20000))]
    data = dataclasses.replace(NULL, data_path=("1", prefixes[0], "1", prefixes[1]), split="8,1,1")
    config = configuration(data)
    ranks = run_distributed(_tokens_on_rank, 2, config, timeout=60)
    assert ranks[0] == ranks[1] == _tokens_alone(config)


def _tokens_alone(config: PretrainConfig) -> list[list[int]]:
    sized = dataclasses.replace(config, training=dataclasses.replace(config.training, global_batch_size=4))
    train, _, _ = build_datasets(sized, build_tokenizer(config.data))
    return [train[index]["tokens"].tolist() for index in range(6)]
