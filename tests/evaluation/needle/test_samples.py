"""Contexts: exact length, exact depth, facts that do not touch, the window left free."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fwpkm.config import NeedleConfig
from megatron_fwpkm.evaluation.needle.fact_kinds import WordFacts
from megatron_fwpkm.evaluation.needle.haystack import Haystack
from megatron_fwpkm.evaluation.needle.samples import Cell, all_cells, make_sample, shortest_context

FILLER = Haystack(np.full(5000, -1), ("filler",))


def fact_positions(context: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of the stretches that are not filler."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (context >= 0).astype(int), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@settings(max_examples=150)
@given(
    length=st.integers(60, 400), depth=st.floats(0, 1), needles=st.integers(1, 5), seed=st.integers(0, 99),
    reach=st.none() | st.integers(0, 500),
)  # fmt: skip
def test_every_sample_keeps_its_promises(spec, length, depth, needles, seed, reach):
    if length < shortest_context(spec, needles):
        return
    sample = make_sample(FILLER, spec, Cell(length, depth, 0), needles=needles, seed=seed, reach=reach)
    context, asked = sample.context, sample.asked
    size = len(asked.tokens)
    assert len(context) == length
    assert sample.asked_start == round(depth * (length - size))
    assert tuple(context[sample.asked_start : sample.asked_start + size]) == asked.tokens
    # Sentences have one size here, so stretches of facts are whole multiples of it: nothing overlaps, nothing is lost.
    stretches = fact_positions(context)
    assert all((end - start) % size == 0 for start, end in stretches)
    assert sum(end - start for start, end in stretches) == needles * size
    visible_from = 0 if reach is None else max(0, length - reach)
    assert sample.in_window is (sample.asked_start + size > visible_from)
    others = [spot for start, end in stretches for spot in range(start, end, size) if spot != sample.asked_start]
    if visible_from > length / 2 + (needles + 2) * size:  # room enough for all of them before the window
        assert all(spot + size <= visible_from for spot in others)


def test_the_ends_of_the_depth_grid_are_the_ends_of_the_context(spec):
    first = make_sample(FILLER, spec, Cell(200, 0.0, 0), needles=3, seed=1, reach=20)
    last = make_sample(FILLER, spec, Cell(200, 1.0, 1), needles=3, seed=1, reach=20)
    assert tuple(first.context[: len(first.asked.tokens)]) == first.asked.tokens and not first.in_window
    assert tuple(last.context[-len(last.asked.tokens) :]) == last.asked.tokens and last.in_window


@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_bos_comes_first_and_counts(spec, depth):
    """Behind it the context is what it would be with one token less; the shortest one needs one token more."""
    plain = make_sample(FILLER, spec, Cell(199, depth, 3), needles=3, seed=1, reach=20)
    begun = make_sample(FILLER, spec, Cell(200, depth, 3), needles=3, seed=1, reach=20, bos=1)
    assert len(begun.context) == 200 and begun.context[0] == 1
    end = begun.asked_start + len(begun.asked.tokens)
    assert tuple(begun.context[begun.asked_start : end]) == begun.asked.tokens
    assert begun.asked_start == 1 + plain.asked_start and begun.in_window == plain.in_window
    assert shortest_context(spec, 3, 1) == shortest_context(spec, 3) + 1
    with pytest.raises(ValueError, match=f"at least {shortest_context(spec, 3, 1)} tokens are needed"):
        make_sample(FILLER, spec, Cell(30, depth, 3), needles=3, seed=1, reach=20, bos=1)


def test_the_window_begins_where_the_needle_is_first_in_sight(spec):
    def make(reach):
        return make_sample(FILLER, spec, Cell(200, 0.5, 0), needles=1, seed=1, reach=reach)

    end = make(0).asked_start + len(make(0).asked.tokens)
    assert not make(200 - end).in_window  # the window begins right behind the needle
    assert make(200 - end + 1).in_window  # it holds the needle's last token
    assert make(None).in_window


def test_a_sample_depends_on_seed_length_and_number_only(spec):
    def make(**changes):
        arguments = {"needles": 3, "seed": 1, "reach": 10}
        return make_sample(FILLER, spec, Cell(200, 0.5, 4), **(arguments | changes))

    again, other = make(), make(seed=2)
    make_sample(FILLER, spec, Cell(200, 0.5, 5), needles=3, seed=1, reach=10)
    assert make().context.tolist() == again.context.tolist()
    assert make().asked == again.asked != other.asked


def test_the_never_shown_fact_is_not_in_the_context(spec, tokenizer):
    for index in range(30):
        sample = make_sample(FILLER, spec, Cell(200, 0.5, index), needles=5, seed=0, reach=10)
        keys = sample.never_shown.question[-spec.key_words :]
        text = sample.context.tolist()
        assert all(tuple(text[i : i + len(keys)]) != keys for i in range(len(text)))
        assert len(sample.never_shown.question) == len(sample.asked.question)


def test_no_distractor_shows_the_never_shown_fact(tokenizer):
    """With keys of one word any key is like any other."""
    spec = WordFacts.from_config(NeedleConfig(key_words=1), tokenizer)
    for index in range(10):
        sample = make_sample(FILLER, spec, Cell(400, 0.5, index), needles=2, seed=0, reach=10, distractors=20)
        text, size = sample.context.tolist(), len(sample.never_shown.question)
        told = [tuple(text[i : i + size]) for i in range(len(text))]
        assert sample.asked.question in told and sample.never_shown.question not in told


def test_what_a_memory_that_is_never_reset_has_read_decides_its_samples(make_settings):
    """More samples or lengths before a sample change it; elsewhere they only say how many there are."""
    few, many = (make_settings(samples=number, memory_reset="never").decides_a_sample() for number in (5, 6))
    assert few != many and few["chain"] == {"lengths": [128, 512], "samples": [5, 5]}
    alike = [make_settings(samples=number, memory_reset="file").decides_a_sample() for number in (5, 6)]
    assert alike[0] == alike[1] and "chain" not in alike[0]


def test_facts_are_surrounded_by_the_text_in_order(spec):
    numbers = Haystack(np.arange(-5000, 0), ("numbers",))
    sample = make_sample(numbers, spec, Cell(300, 0.3, 0), needles=4, seed=5, reach=None)
    text = sample.context[sample.context < 0]
    assert np.diff(text).tolist() == [1] * (len(text) - 1)


def test_too_short_a_context_is_refused(spec):
    needed = shortest_context(spec, 5)
    make_sample(FILLER, spec, Cell(needed, 0.0, 0), needles=5, seed=0, reach=None)
    with pytest.raises(ValueError, match=rf"--lengths 30 is too short for 5 facts.*at least {needed} tokens"):
        make_sample(FILLER, spec, Cell(30, 0.0, 0), needles=5, seed=0, reach=None)


def test_a_tokenizer_with_few_keys_has_a_shortest_context_too(tokenizer):
    few = WordFacts(tokenizer, "The code {key} {value}.", tokenizer.whole_words()[:48], key_words=1, value_words=1)
    longest = max(len(few.encode_fact(fact).tokens) for fact in few.draw(np.random.default_rng(1), 16))
    assert shortest_context(few, 5) == 7 * longest


def test_every_length_may_have_its_own_number_of_samples(make_settings):
    settings = make_settings(lengths=(512, 128), samples=(6, 9))
    cells = list(all_cells(settings))
    assert [sum(cell.length == length for cell in cells) for length in (128, 512)] == [9, 6]
    assert settings.described_samples() == "6 to 9" and make_settings(samples=(5, 5)).described_samples() == "5"
    shorter = list(all_cells(make_settings(lengths=(128,), samples=6)))
    assert shorter == cells[:6], "how many there are changes none of them"


def test_cells_spread_the_samples_over_the_depths(make_settings):
    cells = list(all_cells(make_settings(lengths=(512, 128), samples=7, depths=3)))
    assert [cell.length for cell in cells] == [128] * 7 + [512] * 7
    assert [cell.depth for cell in cells[:7]] == [0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.0]
    assert [cell.index for cell in cells[:7]] == list(range(7))


def test_depths(make_settings):
    assert make_settings(depths=5).depth_grid() == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert make_settings(depths=1).depth_grid() == (0.5,)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "paper"}, "--protocol 'paper' is not known; choose from official, ask-after-write, streaming"),
        ({"controls": ("none",)}, "--controls 'none' is not known"),
        ({"samples": 4}, "--samples 4 must be at least --depths 5"),
        ({"samples": (5, 4)}, "--samples 5 4 must be at least --depths 5"),
        ({"samples": (5, 5, 5)}, "--samples 5 5 5 has 3 numbers for 2 --lengths"),
        ({"needles": 0}, "--needles 0 must be at least 1"),
        ({"depths": 0}, "--depths 0 must be at least 1"),
        ({"lengths": ()}, "--lengths .* must be one or more positive integers"),
        ({"lengths": (128, 0)}, "--lengths 128 0 must be one or more positive integers"),
        ({"lengths": (128, 128)}, "contains the same length twice"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(make_settings, changes, said):
    with pytest.raises(ValueError, match=said):
        make_settings(**changes)
