"""Protocols and controls on a model whose recall is known, and on a real one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from megatron_fwpkm.evaluation.needle.answers import NeedleReader
from megatron_fwpkm.evaluation.needle.haystack import load_haystack
from megatron_fwpkm.evaluation.needle.samples import Cell, make_sample
from megatron_fwpkm.evaluation.needle.settings import MEMORY_ON
from megatron_fwpkm.evaluation.text_model import text_model
from tests.evaluation.oracle import CHUNK, WINDOW, OracleModel

LENGTH = 7 * CHUNK + 40  # the last 40 tokens wait for their chunk


@pytest.fixture
def ask(folder, tokenizer, spec, make_settings):
    """ask(model, depth, **settings): the sample and what the model made of it."""
    haystack = load_haystack([str(folder / "novel.txt")], tokenizer)

    def call(model, depth, index=0, **changes):
        reader = NeedleReader(text_model(model), make_settings(**changes), tokenizer.vocab_size)
        sample = make_sample(haystack, spec, Cell(LENGTH, depth, index), needles=3, seed=1, reach=reader.reach)
        return sample, {answer.condition: answer for answer in reader.ask(sample).answers}

    return call


def waiting_depth(sample_size: int) -> float:
    """A depth whose needle is beyond the window and still waits to be written."""
    return (LENGTH - 36) / (LENGTH - sample_size)


@pytest.mark.parametrize("protocol", ["ask-after-write", "streaming"])
def test_the_memory_recalls_what_was_written_and_controls_do_not(ask, tokenizer, protocol):
    for index, depth in enumerate((0.0, 0.3, 0.6)):
        sample, answers = ask(OracleModel(tokenizer.vocab_size), depth, index, protocol=protocol)
        assert not sample.in_window
        assert answers[MEMORY_ON].exact
        assert not answers["memory-off"].exact
        assert not answers["never-shown"].exact
        assert answers["memory-off"].expected == answers[MEMORY_ON].expected == sample.asked.answer_tokens
        assert answers["never-shown"].expected == sample.never_shown.answer_tokens


def test_only_asking_after_the_write_finds_what_was_waiting(ask, tokenizer, spec):
    size = len(ask(OracleModel(tokenizer.vocab_size), 0.5)[0].asked.tokens)
    depth = waiting_depth(size)
    sample, after = ask(OracleModel(tokenizer.vocab_size), depth, protocol="ask-after-write")
    assert LENGTH - 40 <= sample.asked_start and not sample.in_window
    assert after[MEMORY_ON].exact
    assert not ask(OracleModel(tokenizer.vocab_size), depth, protocol="streaming")[1][MEMORY_ON].exact


def test_a_needle_in_the_window_is_said_to_be_there(ask, tokenizer):
    sample, answers = ask(OracleModel(tokenizer.vocab_size, window=24), 1.0)
    assert sample.in_window
    assert answers["memory-off"].exact  # attention alone finds it, which is why such samples are told apart


def test_writes_go_on_only_in_the_streaming_protocol(ask, tokenizer):
    for protocol, mode in (("ask-after-write", "frozen"), ("streaming", "on")):
        model = OracleModel(tokenizer.vocab_size)
        sample, _ = ask(model, 0.5, protocol=protocol, controls=())
        question, answer = len(sample.asked.question), len(sample.asked.answer_tokens)
        assert model.calls[:2] == [(LENGTH, "on"), (question, mode)]
        candidates = [(answer - 1, mode)] * len(sample.candidates)
        assert model.calls[2:] == [*candidates, *[(1, mode)] * (answer - 1)]


def test_memory_off_reads_no_more_than_attention_can_see(ask, tokenizer):
    model = OracleModel(tokenizer.vocab_size)
    ask(model, 0.5, controls=("memory-off",))
    assert (WINDOW, "off") in model.calls
    model = OracleModel(tokenizer.vocab_size, window=None)
    ask(model, 0.5, controls=("memory-off",))
    assert (LENGTH, "off") in model.calls


def test_no_control_is_asked_unless_wanted(ask, tokenizer):
    assert list(ask(OracleModel(tokenizer.vocab_size), 0.5, controls=())[1]) == [MEMORY_ON]


@torch.inference_mode()
def test_the_end_of_a_context_is_enough_for_the_control(tiny_model, folder, tokenizer, spec, make_settings):
    haystack = load_haystack([str(folder / "novel.txt")], tokenizer)
    reader = NeedleReader(text_model(copy.deepcopy(tiny_model).double()), make_settings(), tokenizer.vocab_size)
    sample = make_sample(haystack, spec, Cell(300, 0.5, 0), needles=3, seed=1, reach=reader.reach)

    def read(context: np.ndarray):
        cache = reader.model.new_cache()
        reader.model.read(context, cache, "off")
        return cache

    def logits(context: np.ndarray) -> torch.Tensor:
        return reader.model.read(sample.asked.question, read(context), "off")

    whole, end = logits(sample.context), logits(reader.visible(sample))
    assert len(reader.visible(sample)) == reader.reach + 1
    # Rotary angles are rounded to float32 whatever the weights are; everything else is float64.
    torch.testing.assert_close(end, whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError, match="not close"):  # a shorter end is not enough, so the comparison can fail
        torch.testing.assert_close(logits(sample.context[-3:]), whole, rtol=1e-4, atol=1e-4)


def test_answering_leaves_the_past_alone(tiny_model, folder, tokenizer, spec, make_settings):
    haystack = load_haystack([str(folder / "novel.txt")], tokenizer)
    reader = NeedleReader(text_model(tiny_model), make_settings(protocol="streaming"), tokenizer.vocab_size)
    sample = make_sample(haystack, spec, Cell(200, 0.5, 0), needles=3, seed=1, reach=reader.reach)
    with torch.inference_mode():
        past = reader.model.new_cache()
        reader.model.read(sample.context, past)
        before = [layer.state.whole_values().clone() for layer in past.memory.values()]
        first, again = (
            reader._answer(sample, sample.asked, reader._question(past, sample.asked), MEMORY_ON, 1) for _ in range(2)
        )
        assert first == again
    assert all(torch.equal(a, b.state.whole_values()) for a, b in zip(before, past.memory.values(), strict=True))


def test_ids_beyond_the_tokenizer_are_no_answers(folder, tokenizer, spec, make_settings):
    class Padding(OracleModel):
        def _predict(self, cache):
            return self.config.vocab_size - 1

    haystack = load_haystack([str(folder / "novel.txt")], tokenizer)
    reader = NeedleReader(text_model(Padding(tokenizer.vocab_size + 8)), make_settings(), tokenizer.vocab_size)
    sample = make_sample(haystack, spec, Cell(200, 0.5, 0), needles=3, seed=1, reach=reader.reach)
    assert max(reader.ask(sample).answers[2].given) < tokenizer.vocab_size
