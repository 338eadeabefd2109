"""Losses that a scripted model must have: frozen memories, texts that are read first, blends, documents."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fwpkm.data.indexed.indexed_format import IndexedWriter
from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.perplexity import run as perplexity_run
from megatron_fwpkm.evaluation.perplexity.loss_table import text_lines
from megatron_fwpkm.evaluation.perplexity.perplexity_settings import PerplexitySettings
from megatron_fwpkm.evaluation.perplexity.run import measure_perplexity
from megatron_fwpkm.evaluation.perplexity.spans import Span
from tests.evaluation.topic_model import TOPICS, TopicModel, byte_tokenizer, facts, load_topics

FIRST, SECOND, THIRD = TOPICS
LOSS = TopicModel().loss
NEW = LOSS(FIRST, (FIRST,))
"""Of a letter whose topic alone is remembered."""


@pytest.fixture(autouse=True)
def known_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity_run, "inspect_model", lambda path, device: facts())


@pytest.fixture
def settings(tmp_path: Path) -> PerplexitySettings:
    """A document of the first topic, one of the third, and the first topic again."""
    texts = {"a.txt": FIRST * 20, "b.txt": THIRD * 10, "c.txt": FIRST * 7}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return PerplexitySettings(str(tmp_path), tuple(str(tmp_path / name) for name in texts), ("on", "off", "frozen"),
                              "never", block=8, segment=5)  # fmt: skip


def documents_of(results: Any, condition: str) -> list[float]:
    rows = (row for row in results.documents.rows if row.condition == condition and row.versus is None)
    return [row.loss.mean for row in rows]


def test_a_frozen_memory_is_that_of_earlier_documents(settings: PerplexitySettings, tmp_path: Path) -> None:
    results = measure_perplexity(settings, RunOptions(tmp_path / "out"), load_topics)
    # While a document is written its own topic is remembered from the first letter on; frozen, earlier ones are.
    on = [NEW, LOSS(THIRD, (FIRST, THIRD)), LOSS(FIRST, (THIRD, FIRST))]
    frozen = [LOSS(FIRST, ()), LOSS(THIRD, (FIRST,)), LOSS(FIRST, (FIRST, THIRD))]
    for condition, losses in {"on": on, "off": [LOSS(FIRST, ())] * 3, "frozen": frozen}.items():
        assert documents_of(results, condition) == pytest.approx(losses, abs=1e-12), condition
    tokens = (59, 19, 20)
    whole = math.fsum(one * count for one, count in zip(frozen, tokens, strict=True)) / 98
    assert results.find("frozen").loss.mean == pytest.approx(whole, abs=1e-12)
    gaps = [row for row in results.documents.rows if row.versus == "frozen"]
    assert [row.loss.mean for row in gaps] == pytest.approx([a - b for a, b in zip(on, frozen, strict=True)], abs=1e-12)
    assert all(row.loss.high - row.loss.low < 1e-12 for row in gaps)
    summary = {row["versus"]: row for row in results.documents.summary()}
    assert (summary["off"]["documents"], summary["off"]["better"], summary["frozen"]["better"]) == (3, 3, 2)
    assert summary["off"]["mean_difference"] == pytest.approx(sum(on) / 3 - LOSS(FIRST, ()), abs=1e-6)
    assert "2 of 3 documents are below zero" in text_lines(results)


def test_texts_that_are_read_first(settings: PerplexitySettings, tmp_path: Path) -> None:
    first = replace(settings, text=settings.text[:2], read_first=settings.text[1:2], memory_reset="document")
    results = measure_perplexity(first, RunOptions(tmp_path / "out"), load_topics)
    assert documents_of(results, "frozen") == pytest.approx([LOSS(FIRST, (THIRD,)), LOSS(THIRD, (THIRD,))], abs=1e-12)
    assert documents_of(results, "on") == pytest.approx([LOSS(FIRST, (THIRD, FIRST)), LOSS(THIRD, (THIRD,))], abs=1e-12)
    assert documents_of(results, "off") == pytest.approx([LOSS(FIRST, ())] * 2, abs=1e-12)
    with pytest.raises(ValueError, match="different: text"):
        measure_perplexity(replace(first, read_first=settings.text[:1]), RunOptions(tmp_path / "out"), load_topics)


def test_a_blend_is_the_mean_over_its_sources(settings: PerplexitySettings, tmp_path: Path) -> None:
    blend = replace(settings, memory=("on", "off"), memory_reset="document", text_weights=(3.0, 2.0, 1.0))
    results = measure_perplexity(blend, RunOptions(tmp_path / "out"), load_topics)
    losses = [NEW, LOSS(THIRD, (THIRD,)), NEW]
    assert results.find("on").loss.mean == pytest.approx((3 * losses[0] + 2 * losses[1] + losses[2]) / 6, abs=1e-12)
    by_source = [results.find("on", None, None, source).loss.mean for source in blend.text]
    assert by_source == pytest.approx(losses, abs=1e-12) and results.sources() == list(blend.text)
    # From position 24 on only the first text has letters.
    assert results.find("on", "off", Span(32)).loss.mean == pytest.approx(NEW - LOSS(FIRST, ()), abs=1e-12)
    assert results.bits_per_byte("on") == pytest.approx(results.find("on").loss.mean / math.log(2), abs=1e-12)
    pooled = measure_perplexity(replace(blend, text_weights=()), RunOptions(tmp_path / "pooled"), load_topics)
    assert pooled.find("on").loss.mean == pytest.approx((79 * NEW + 19 * losses[1]) / 98, abs=1e-12)


def write_dataset(prefix: Path, texts: list[str]) -> str:
    tokenizer = byte_tokenizer()
    ids = [[*tokenizer.encode(text), tokenizer.eod] for text in texts]
    with IndexedWriter(prefix, np.dtype("uint16")) as writer:
        for row in ids:
            writer.append(np.asarray(row, np.uint16).tobytes(), np.asarray([len(row)]))
        writer.publish({
            "format": 1, "tokenizer": {"identity": tokenizer.identity, "type": tokenizer.kind,
                                       "vocab_size": tokenizer.vocab_size},
        })  # fmt: skip
    return str(prefix)


def test_datasets_are_read_as_they_are(settings: PerplexitySettings, tmp_path: Path) -> None:
    """Each document ends with its end-of-document token, which no topic has."""
    one = write_dataset(tmp_path / "one", [FIRST * 10, "", THIRD * 10, FIRST])
    two = write_dataset(tmp_path / "two", [SECOND * 5])
    blend = replace(settings, text=(), data_path=("0.25", one, "0.75", two), memory=("on",), memory_reset="document")
    results = measure_perplexity(blend, RunOptions(tmp_path / "out"), load_topics)
    topics, lengths = (FIRST, THIRD, FIRST, SECOND), (30, 20, 3, 15)
    ends = [LOSS("", (topic,)) for topic in topics]
    rows = [
        (LOSS(topic, (topic,)) * (length - 1) + end) / length
        for topic, length, end in zip(topics, lengths, ends, strict=True)
    ]
    assert documents_of(results, "on") == pytest.approx(rows, abs=1e-12)
    first = math.fsum(row * length for row, length in zip(rows[:3], lengths[:3], strict=True)) / 53
    assert results.find("on").loss.mean == pytest.approx(0.25 * first + 0.75 * rows[3], abs=1e-12)
    listed = list(csv.DictReader((tmp_path / "out" / "documents.csv").open()))
    assert [row["document"] for row in listed] == [f"{one}#0", f"{one}#2", f"{one}#3", f"{two}#0"]
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 1 + 2, "short documents go together"
    few = replace(blend, data_path=(one,), documents=1)
    assert measure_perplexity(few, RunOptions(tmp_path / "few"), load_topics).find("on").tokens == 30
    with pytest.raises(ValueError, match="has no document of two tokens or more"):
        empty = write_dataset(tmp_path / "empty", ["", ""])
        measure_perplexity(replace(few, data_path=(empty,)), RunOptions(tmp_path / "none"), load_topics)
