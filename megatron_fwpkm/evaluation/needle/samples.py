"""Contexts with facts in them: how long, where the facts stand, what is asked. Free of torch.

A length in words is exact in words, those of the facts included; how many tokens that is depends on the text.
Positions count tokens of the finished context, the BOS included that it begins with where documents of training did.
The asked fact stands exactly at its depth: with N tokens of context behind BOS and n of its sentence, at
round(depth * (N - n)) of them. The other facts go to random places before and after it, outside the part
that attention can still see from the end of the context as long as there is room elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from ...data.training.needles import EncodedFact, Fact
from .fact_kinds import FactKind, draw_distractors
from .haystack import Haystack
from .settings import DistractorKind, NeedleSettings

_DECOYS = 4
"""Values of facts that are not in the context, among which the right one has to be told."""


@dataclass(frozen=True)
class Cell:
    """Which sample: its length, its depth and its number within the length."""

    length: int
    depth: float
    index: int


@dataclass(frozen=True)
class NeedleSample:
    """A context and its two questions."""

    cell: Cell
    context: np.ndarray
    """int64 [length]"""
    asked: EncodedFact
    asked_start: int
    """Where the asked fact's sentence begins."""
    in_window: bool
    """Whether attention alone can still reach part of the asked fact from the end of the context."""
    never_shown: EncodedFact
    """A fact of the same form that is not in the context."""
    candidates: tuple[tuple[int, ...], ...]
    """Tokens of different values, in no order: all of the context, that of `never_shown`, and some more."""


def all_cells(settings: NeedleSettings) -> Iterator[Cell]:
    """Every sample of an evaluation, shortest contexts first, depths in turn; with a memory that is carried from
    context to context of a file, file by file."""
    grid = settings.depth_grid()
    for length in sorted(settings.lengths):
        cells = [Cell(length, grid[index % len(grid)], index) for index in range(settings.samples_at(length))]
        yield from sorted(cells, key=lambda cell: file_of(cell, settings) or 0)


def file_of(cell: Cell, settings: NeedleSettings) -> int | None:
    """The number of the haystack's file that the context of a cell is cut from; None for any."""
    if settings.memory_reset != "file":
        return None
    return cell.index // settings.depths % len(settings.haystack)


def earlier_cells(settings: NeedleSettings, cell: Cell) -> list[Cell]:
    """The samples whose memory a cell goes on from, in order; none where every context has the initial memory.

    With `--memory-reset file` those of the same length and file, with `never` all.
    """
    if not settings.carries_memory:
        return []
    before = list(takewhile(lambda other: other != cell, all_cells(settings)))
    if settings.memory_reset == "never":
        return before
    return [
        other for other in before if (other.length, file_of(other, settings)) == (cell.length, file_of(cell, settings))
    ]


def shortest_context(kind: FactKind, facts: int, bos: int | None = None) -> int:
    """Tokens from which on `facts` facts always find a place, whatever the depth; behind `bos`."""
    drawn = kind.draw(np.random.default_rng(0), min(64, kind.number_of_keys()))
    longest = max(len(kind.encode_fact(fact).tokens) for fact in drawn)
    return (facts + 2) * longest + (bos is not None)


def make_sample(
    haystack: Haystack, kind: FactKind, cell: Cell, *, needles: int, seed: int, reach: int | None,
    bos: int | None = None, distractors: int = 0, distractor_kind: DistractorKind = "same-key",
    file: int | None = None,
) -> NeedleSample:  # fmt: skip
    """The sample of a cell: the same for the same arguments, whatever was made before.

    Args:
        haystack: text to cut from.
        kind: how facts are drawn and worded.
        cell: length, depth and number.
        needles: facts in the context, and
        distractors: those that are like the asked one, as `distractor_kind` says.
        seed: of the evaluation.
        reach: tokens before the end of the context that attention can see from there; None for all.
        bos: the token every context begins with, if any; it is one of its tokens.
        distractor_kind: as `draw_distractors`.
        file: of the haystack, to cut from it only.

    Raises:
        ValueError: the haystack is shorter than the context, or the context too short for the facts.
    """
    rng = np.random.default_rng([seed, cell.length, cell.index])
    *drawn, never_shown = kind.draw(rng, needles + 1)
    if distractors:
        drawn += draw_distractors(kind, rng, [*drawn, never_shown], distractors, distractor_kind)
    facts = [kind.encode_fact(fact) for fact in drawn]
    sizes = [len(fact.tokens) for fact in facts]
    begin = np.asarray([] if bos is None else [bos], dtype=np.int64)
    text = None
    if haystack.words is not None:
        told = sum(len(kind.sentence(fact).split()) for fact in drawn)
        text = haystack.cut(rng, max(1, cell.length - told), file)
    length = cell.length - len(begin) if text is None else len(text) + sum(sizes)
    if length < sum(sizes) + 2 * max(sizes):
        raise ValueError(
            f"--lengths {cell.length} is too short for {len(facts)} facts of {max(sizes)} tokens: at least "
            f"{shortest_context(kind, len(facts), bos)} tokens are needed"
        )
    starts = [round(cell.depth * (length - sizes[0]))]
    visible_from = 0 if reach is None else max(0, length - reach)
    starts += _other_starts(rng, sizes, starts[0], length, visible_from)
    if text is None:
        text = haystack.cut(rng, length - sum(sizes), file)
    context = np.concatenate([begin, _insert(text, facts, starts)])
    in_window = starts[0] + sizes[0] > visible_from
    hidden = kind.encode_fact(never_shown)
    candidates = _candidates(
        kind, facts[0], [*drawn, never_shown], np.random.default_rng([seed, cell.length, cell.index, 1])
    )
    return NeedleSample(cell, context, facts[0], len(begin) + starts[0], in_window, hidden, candidates)


def _candidates(
    kind: FactKind, asked: EncodedFact, drawn: Sequence[Fact], rng: np.random.Generator
) -> tuple[tuple[int, ...], ...]:
    """Different values as tokens that follow the asked question: those of `drawn`, and some more."""
    values = {fact.value for fact in drawn} | {kind.draw_value(rng) for _ in range(_DECOYS)}
    sentences = [kind.encode_fact(Fact(drawn[0].key, value)) for value in sorted(values)]
    return tuple(fact.answer_tokens for fact in sentences if fact.question == asked.question)


def _other_starts(
    rng: np.random.Generator, sizes: Sequence[int], asked_start: int, length: int, visible_from: int
) -> list[int]:
    """Starts of the facts 1, 2, ... around the asked one, before `visible_from` where they fit there."""
    asked_end = asked_start + sizes[0]
    for limit in (visible_from, length):
        sides = [(0, min(asked_start, limit)), (asked_end, max(asked_end, limit))]
        placed = _spread(rng, sizes, sides)
        if placed is not None:
            return placed
    raise AssertionError("no room for facts in a context that is long enough for them")


def _spread(rng: np.random.Generator, sizes: Sequence[int], sides: Sequence[tuple[int, int]]) -> list[int] | None:
    """Random starts for the facts 1, 2, ... within the sides, without overlaps; None where they do not fit.

    A side is chosen with a probability in proportion to the room left there.
    """
    room = np.array([end - begin for begin, end in sides])
    members: list[list[int]] = [[] for _ in sides]
    for which in rng.permutation(np.arange(1, len(sizes))):
        open_room = np.where(room >= sizes[which], room, 0)
        if not open_room.any():
            return None
        side = int(rng.choice(len(sides), p=open_room / open_room.sum()))
        members[side].append(int(which))
        room[side] -= sizes[which]
    starts = [0] * len(sizes)
    for (begin, _), inside, free in zip(sides, members, room, strict=True):
        gaps = np.sort(rng.integers(0, free + 1, size=len(inside)))
        taken = 0
        for which, gap in zip(inside, gaps, strict=True):
            starts[which] = begin + int(gap) + taken
            taken += sizes[which]
    return starts[1:]


def _insert(text: np.ndarray, facts: Sequence[EncodedFact], starts: Sequence[int]) -> np.ndarray:
    """Text with the facts' tokens inserted so that each begins at its start in the result."""
    parts, used, written = [], 0, 0
    for start, fact in sorted(zip(starts, facts, strict=True), key=lambda pair: pair[0]):
        parts += [text[used : used + start - written], np.asarray(fact.tokens, dtype=np.int64)]
        used += start - written
        written = start + len(fact.tokens)
    return np.concatenate([*parts, text[used:]])
