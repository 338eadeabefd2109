"""Every protocol, number of reads, chunk and reset on scripted models whose right score is known."""

from __future__ import annotations

import copy

import pytest
import torch

from megatron_fwpkm.evaluation.model_loading import LoadedModel
from megatron_fwpkm.evaluation.needle import answers
from megatron_fwpkm.evaluation.needle.answers import NeedleReader
from megatron_fwpkm.evaluation.needle.early_checks import check_places
from megatron_fwpkm.evaluation.needle.evaluator import Evaluator
from megatron_fwpkm.evaluation.needle.haystack import load_haystack
from megatron_fwpkm.evaluation.needle.samples import Cell, all_cells, earlier_cells, make_sample
from megatron_fwpkm.evaluation.needle.settings import MEMORY_ON
from megatron_fwpkm.evaluation.text_model import text_model
from tests.evaluation.oracle import CHUNK, WINDOW, OracleModel

LENGTH = 7 * CHUNK + 40
EARLY = 0.3
"""A depth beyond the window, in a chunk that is full before the context ends."""


@pytest.fixture
def haystack(folder, tokenizer):
    """The text of the tests."""
    return load_haystack([str(folder / "novel.txt")], tokenizer)


@pytest.fixture
def ask(haystack, tokenizer, spec, make_settings):
    """ask(depth, **settings): answers of the oracle by condition and number of reads, and the oracle."""

    def call(depth, window=WINDOW, length=LENGTH, **changes):
        model = OracleModel(tokenizer.vocab_size, window=window)
        settings = make_settings(**changes)
        reader = NeedleReader(text_model(model), settings, tokenizer.vocab_size)
        sample = make_sample(haystack, spec, Cell(length, depth, 0), needles=3, seed=1, reach=reader.reach)
        result = reader.ask(sample)
        return {(answer.condition, answer.reads): answer for answer in result.answers}, model

    return call


def test_the_paper_answers_the_first_token_from_a_memory_that_has_not_read_the_context(ask):
    """One read and one chunk per input: the write comes after the question. From the second token on, and with a
    second read from the first token on, the answer is right."""
    answers, _ = ask(EARLY, protocol="official", chunk="input", reads=(1, 2, 3))
    once = answers[MEMORY_ON, 1]
    assert not once.first and not once.exact
    assert answers[MEMORY_ON, 2].exact and answers[MEMORY_ON, 3].exact
    assert answers[MEMORY_ON, 2].rank == 0
    assert not answers["never-shown", 3].exact


def test_the_time_of_a_read_is_that_of_a_gpu_too(haystack, tokenizer, spec, make_settings, monkeypatch):
    """What a GPU has yet to do is waited for: before the clock starts, and before it stops."""
    model = text_model(OracleModel(tokenizer.vocab_size))
    reader = NeedleReader(model, make_settings(reads=(2,)), tokenizer.vocab_size)
    clock = [0.0]
    monkeypatch.setattr(answers.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(model, "finish", lambda: clock.append(clock.pop() + 3.0), raising=False)
    sample = make_sample(haystack, spec, Cell(100, 0.5, 0), needles=3, seed=1, reach=reader.reach)
    assert reader.ask(sample).read_seconds == 3.0


def test_asked_after_the_write_one_read_is_enough(ask):
    answers, model = ask(EARLY, protocol="ask-after-write", chunk="input", reads=(1, 2))
    assert answers[MEMORY_ON, 1].exact and answers[MEMORY_ON, 1].rank == 0
    assert answers[MEMORY_ON, 2].exact
    assert model.calls.count((LENGTH, "on")) == 2, "the second number of reads goes on from the first"


def test_with_the_chunks_of_training_the_paper_finds_what_was_written_on_the_way(ask):
    late = (LENGTH - 36) / (LENGTH - 7)  # beyond the window, in the chunk that is not full
    assert ask(EARLY, protocol="official")[0][MEMORY_ON, 1].exact
    answers, _ = ask(late, protocol="official", reads=(1, 2))
    assert not answers[MEMORY_ON, 1].first and answers[MEMORY_ON, 2].exact


def test_a_stream_repeats_the_context_without_a_beginning_of_its_own(ask):
    """What waits goes on to wait: only the second time is it written. Attention goes on, too."""
    late = (LENGTH - 36) / (LENGTH - 7)
    answers, model = ask(late, protocol="streaming", reads=(1, 2))
    assert not answers[MEMORY_ON, 1].exact and answers[MEMORY_ON, 2].exact
    assert model.calls.count((LENGTH, "on")) == 2


@pytest.mark.parametrize("protocol", ["official", "ask-after-write", "streaming"])
def test_conditions_that_write_nothing_recall_what_attention_sees(ask, protocol):
    for depth, seen in ((EARLY, False), (1.0, True)):
        answers, _ = ask(depth, window=24, protocol=protocol)
        assert [answers[name, 1].exact for name in ("memory-off", "frozen")] == [seen, seen]
        assert answers["memory-off", 1].rank == 0 or not seen


def test_segments_change_nothing_for_a_model_that_streams(ask):
    whole, _ = ask(EARLY, protocol="ask-after-write", segment=10**6)
    parts, model = ask(EARLY, protocol="ask-after-write", segment=100)
    assert whole == parts and (100, "on") in model.calls and (LENGTH, "on") not in model.calls


@torch.inference_mode()
def test_segments_change_a_real_model_by_rounding_at_most(tiny_model, haystack, tokenizer, spec, make_settings):
    """The memory, window and positions go on from call to call."""
    logits, exact = [], copy.deepcopy(tiny_model).double()
    for segment in (1000, 50):
        settings = make_settings(segment=segment)
        reader = NeedleReader(text_model(exact), settings, tokenizer.vocab_size)
        sample = make_sample(haystack, spec, Cell(300, 0.5, 0), needles=3, seed=1, reach=reader.reach)
        cache = reader.model.new_cache()
        reader._read(sample.context[None], cache, "on")
        assert reader.model.tokens_read(cache) == 300
        logits.append(reader.model.read(sample.asked.question, cache))
    torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_the_whole_input_is_one_chunk_of_a_real_memory(tiny_model, haystack):
    """Nothing is written before the end, then all but the last tokens, whose targets are not known."""
    reader = text_model(tiny_model)
    cache = reader.new_cache(2**40)
    reader.read(haystack.tokens[:300], cache)
    (memory,) = (owner for layer in cache.memory.values() for owner in layer.owners)
    assert memory.state.pending.queries.shape[1] == 300 and not len(memory.state.overlay)
    reader.write_waiting(cache)
    assert memory.state.pending.queries.shape[1] == 1 and len(memory.state.overlay)
    assert memory.options.chunk_size == 2**40 and tiny_model.config.fwpkm_chunk_size == 32
    assert reader.next_text(reader.clone(cache)).memory[1].owners[0].options.chunk_size == 2**40


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["official", "streaming"])
def test_contexts_read_together_give_what_each_gives_alone(tiny_model, haystack, tokenizer, make_settings, protocol):
    """In float64, where rounding decides no answer; a second read goes on with the memories of the first."""
    model = copy.deepcopy(tiny_model).double()
    records = []
    for size in (1, 3):
        settings = make_settings(lengths=(100,), depths=5, protocol=protocol, reads=(1, 2), segment=40, batch_size=size)
        measured = Evaluator(settings, LoadedModel(model, tokenizer), haystack)
        records.append([_timeless(measured.run(cell)) for cell in all_cells(settings)])
    assert records[0] == records[1]
    assert len({str(record["answers"]) for record in records[0]}) == 5


@pytest.fixture
def evaluator(folder, tokenizer, make_settings):
    """evaluator(**settings): of an oracle over two files."""

    def make(**changes):
        settings = make_settings(lengths=(128, 256), needles=2, samples=6, depths=3, **changes)
        object.__setattr__(settings, "haystack", (str(folder / "novel.txt"), str(folder / "novel.txt.gz")))
        text = load_haystack(settings.haystack, tokenizer)
        return Evaluator(settings, LoadedModel(OracleModel(tokenizer.vocab_size), tokenizer), text)

    return make


def test_chains_are_what_the_reset_says(evaluator):
    def begins(reset):
        settings = evaluator(memory_reset=reset).settings
        return [len(earlier_cells(settings, cell)) for cell in all_cells(settings)]

    assert begins("sample") == [0] * 12
    assert begins("file") == [0, 1, 2] * 4
    assert begins("never") == list(range(12))


@pytest.mark.parametrize("reset", ["file", "never"])
def test_a_carried_memory_holds_earlier_contexts(evaluator, reset):
    """A needle of the context before is recalled; after a reset it is not."""
    measured = evaluator(memory_reset=reset)
    cells = list(all_cells(measured.settings))
    for cell in cells[:3]:
        measured.run(cell)
    kept = measured._last[1]
    first = measured.sample(cells[0]).context.tolist()
    joined = kept.written + kept.pending
    assert any(joined[start : start + 128] == first for start in range(len(joined)))
    measured.run(cells[3])  # of another file
    assert (len(measured._last[1].written) > 300) is (reset == "never")


@pytest.mark.parametrize(("reset", "protocol"), [("file", "official"), ("never", "ask-after-write")])
def test_a_chain_that_was_interrupted_gives_the_same_records(evaluator, reset, protocol):
    settings = {"memory_reset": reset, "protocol": protocol, "reads": (2,)}
    whole = evaluator(**settings)
    cells = list(all_cells(whole.settings))[:7]
    expected = [_timeless(whole.run(cell)) for cell in cells]
    again = evaluator(**settings)
    assert [_timeless(again.run(cell)) for cell in cells[5:]] == expected[5:]


def _timeless(record):
    """A record without the time it took."""
    return {name: value for name, value in record.to_json().items() if name != "read_seconds"}


def test_frozen_reads_the_carried_memory_and_memory_off_the_initial_one(evaluator):
    measured = evaluator(memory_reset="never")
    cells = list(all_cells(measured.settings))
    measured.run(cells[0])
    past = measured._last[1]
    past.end_text()
    repeated = measured.sample(cells[0])
    answers = {answer.condition: answer for answer in measured.reader.ask(repeated, past).answers}
    assert answers["frozen"].exact and not answers["memory-off"].exact


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "streaming", "chunk": "input"}, "--protocol streaming writes only full chunks, and with --chunk"),
        ({"reads": (1, 2), "memory_reset": "never"}, "--reads 1 2 with --memory-reset never: .* run once for each"),
        ({"reads": (1, 2), "memory_reset": "file"}, "--reads 1 2 with --memory-reset file"),
        ({"reads": (0,)}, "--reads 0 must be one or more positive integers"),
        ({"reads": (2, 2)}, "--reads 2 2 contains the same read twice"),
        ({"distractors": -1}, "--distractors -1 must be at least 0"),
        ({"batch_size": 2, "memory_reset": "never"}, "--batch-size 2 .* from the memory of the one before; use"),
        ({"batch_size": 2, "length_unit": "words"}, "--batch-size 2 .* with --length-unit words they differ in tokens"),
        ({"segment": 0}, "--segment 0 must be at least 1"),
        ({"needle_kind": "bits"}, "--needle-kind 'bits' is not known; choose from words, digits, uuid"),
    ],
)
def test_what_makes_no_sense_is_refused(make_settings, changes, said):
    with pytest.raises(ValueError, match=said):
        make_settings(**changes)


def test_a_chain_is_measured_by_one_process(make_settings, tmp_path):
    with pytest.raises(ValueError, match="--workers 2 and --memory-reset never: .* start only one"):
        check_places(make_settings(memory_reset="never"), tmp_path, 2)
    with pytest.raises(ValueError, match="--workers 2 and --batch-size 3: one process reads a batch"):
        check_places(make_settings(batch_size=3), tmp_path, 2)
    with pytest.raises(ValueError, match="torchrun with 4 processes and --memory-reset file"):
        check_places(make_settings(memory_reset="file"), tmp_path, 1, 4)
