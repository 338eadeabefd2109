"""Answers whose source is known: a memory that is asked by the token alone reads what the same token wrote before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_fwpkm.evaluation.memory_trace.slot_recall import SlotRecall, recall_by_head
from megatron_fwpkm.evaluation.text_model import text_model
from megatron_fwpkm.evaluation.trace.answer_trace import (
    AnswerTask,
    AnswerTrace,
    AnswerTracer,
    LayerRead,
    SlotRead,
    SlotSource,
)
from tests.hf.builders import small_model

KEY, VALUE, CHUNK = 7, 9, 8
SIZES = {"fwpkm_layers": [0], "fwpkm_num_subkeys": 32, "fwpkm_num_heads": 2, "fwpkm_addressing_weight": 0.0}


@pytest.fixture(scope="module")
def model() -> Any:
    """Its memory stands before the first layer: a query depends on its token alone, and the keys stand still."""
    return small_model(**SIZES)


def context(place: int, length: int = 60) -> np.ndarray:
    """KEY VALUE at a place, and nowhere else."""
    ids = np.random.default_rng(0).integers(20, 60, length)
    ids[place : place + 2] = KEY, VALUE
    return ids


def traced(model: Any, place: int, mode: str, reads: int = 1) -> tuple[AnswerTrace, dict[str, SlotRecall]]:
    """The trace of the question KEY, and the recall of its answer."""
    task = AnswerTask(context(place), (30, KEY), 2, (VALUE,), (place + 1,))
    trace = AnswerTracer(text_model(model), mode, reads, 64).trace(task)
    return trace, recall_by_head(trace.tokens[0].layers[0], place)


def positions(read: LayerRead) -> set[tuple[int, int, int]]:
    """(position, read, chunk) of all writers."""
    return {source[:3] for slot in read.slots for source in slot.writers}


def test_the_token_that_wrote_is_named_with_its_chunk(model: Any) -> None:
    trace, recalls = traced(model, 19, "ask-after-write")
    assert set(recalls) == {"all", "0", "1"} and all(found.found_within(1) for found in recalls.values())
    read = trace.tokens[0].layers[0]
    assert all((19, 1, 19 // CHUNK) in {source[:3] for source in slot.writers} for slot in read.slots)
    assert sum(slot.weight for slot in read.slots) == pytest.approx(1) and 0 < read.gate < 1
    assert [slot.weight for slot in read.slots] == sorted((slot.weight for slot in read.slots), reverse=True)
    alone = [slot for slot in read.slots if slot.different_writers == 1]
    assert alone and all(slot.age == 61 - 19 and slot.writers[0].share == 1 for slot in alone)
    again, same = traced(model, 19, "ask-after-write")
    assert again == trace and same == recalls


def test_a_token_that_waits_is_not_named_until_it_is_written(model: Any) -> None:
    """Chunks of 8 and targets one token ahead: of 60 tokens the last 4 wait, of which a flush writes 3."""
    for place, chunk in ((55, 6), (57, 7)):
        written = place < 56
        streaming, recalls = traced(model, place, "streaming")
        assert recalls["all"].found_within(6) == written
        assert all(position < 56 for position, _, _ in positions(streaming.tokens[0].layers[0]))
        flushed, recalls = traced(model, place, "ask-after-write")
        assert recalls["all"].found_within(1)
        assert (place, 1, chunk) in positions(flushed.tokens[0].layers[0])


def test_questions_are_written_while_the_text_streams(model: Any) -> None:
    """The question's KEY waits in the same chunk as its answer: nobody is named. A later question finds it."""
    ids = context(3)
    ids[3:5] = 30
    question = (KEY, VALUE, *[30] * 8, KEY)
    trace = AnswerTracer(text_model(model), "streaming", 1, 64).trace(AnswerTask(ids, question, 1))
    assert (60, 1, 7) in positions(trace.tokens[0].layers[0])  # written when token 64 arrived, before token 70 read
    short = AnswerTracer(text_model(model), "streaming", 1, 64).trace(AnswerTask(ids, (KEY, VALUE, KEY), 1))
    assert not any(position == 60 for position, _, _ in positions(short.tokens[0].layers[0]))


def test_every_read_of_the_context_is_told_apart(model: Any) -> None:
    trace, recalls = traced(model, 19, "ask-after-write", reads=2)
    assert recalls["all"].found_within(1)
    assert {(19, 1, 2), (19, 2, 10)} <= positions(trace.tokens[0].layers[0])  # 8 writes of the first read
    statistics, once = trace.statistics[0], traced(model, 19, "ask-after-write")[0].statistics[0]
    assert statistics["collided"] == pytest.approx(once["collided"]) and statistics["written"] == once["written"]


def test_nobody_is_named_when_the_memory_is_off(model: Any) -> None:
    trace, recalls = traced(model, 19, "memory-off")
    assert recalls["all"] == SlotRecall(0, 0.0) and not positions(trace.tokens[0].layers[0])
    assert trace.statistics[0]["written"] == 0 < trace.statistics[0]["read"]


def test_tracing_changes_no_answer(model: Any) -> None:
    trace, _ = traced(model, 19, "ask-after-write")
    cache, given = model.new_cache(), []
    with torch.no_grad():
        model(input_ids=torch.from_numpy(context(19)).unsqueeze(0), cache=cache, memory="on")
        cache.flush_memory()
        ids = torch.tensor([[30, KEY]])
        for _ in range(2):
            ids = model(input_ids=ids, cache=cache, memory="frozen").logits[:, -1:].argmax(-1)
            given.append(int(ids))
    assert trace.given == tuple(given)


def test_an_answer_ends_at_its_last_token(model: Any) -> None:
    tracer = AnswerTracer(text_model(model), "ask-after-write", 1, 64)
    whole = tracer.trace(AnswerTask(context(19), (30, KEY), 5)).given
    stop = next(token for token in whole[1:] if token != whole[0])
    ended = tracer.trace(AnswerTask(context(19), (30, KEY), 5, stop=stop)).given
    assert ended == whole[: whole.index(stop)]


def test_a_model_without_slots_is_refused() -> None:
    model = small_model(fwpkm_layers=[])
    with pytest.raises(ValueError, match="has no product key memory"):
        AnswerTracer(text_model(model), "streaming", 1, 64)


def test_recall_counts_ranks_and_shares() -> None:
    def slot(weight: float, *sources: tuple[int, float], head: int = 0) -> SlotRead:
        return SlotRead(head, 0, weight, 1, 1, tuple(SlotSource(place, 1, 0, share) for place, share in sources))

    read = LayerRead(1.0, (slot(0.5, (3, 1.0)), slot(0.3, (3, 0.5), (4, 0.5), head=1), slot(0.2, head=1)))
    assert recall_by_head(read, 4) == {
        "all": SlotRecall(2, pytest.approx(0.15)), "0": SlotRecall(0, 0.0), "1": SlotRecall(1, pytest.approx(0.3)),
    }  # fmt: skip
    assert not SlotRecall(2, 0.1).found_within(1) and SlotRecall(2, 0.1).found_within(2)


def test_a_recall_is_what_its_log_gives_again() -> None:
    """So that a killed trace, of which some records are read, has the numbers of one that was not killed."""
    slot = SlotRead(0, 5, 1.0, 1, 1, (SlotSource(7, 1, 0, 1 / 3), SlotSource(8, 1, 0, 2 / 3)))
    found = SlotRecall.of([slot], 7)
    assert SlotRecall(**found.to_json()) == found
