"""The samples of a task at a length, one after the other, equal to those of NVIDIA's generator for the same seed.

A sample depends on all before it, for they share a generator of random numbers. Free of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from .needle_prompts import EssayText, NeedlePrompts
from .prompt_sizes import RulerSample, fitting_sample, largest_size
from .question_prompts import QuestionPrompts, QuestionSet
from .ruler_tasks import RULER_TASKS, RulerTask
from .variable_prompts import VariablePrompts, solved
from .word_lists import key_words, list_words
from .word_prompts import CommonWordPrompts, FrequentWordPrompts

_EXAMPLE_LENGTH = 500
"""Tokens of the example before the samples of variable tracking."""


@dataclass(frozen=True)
class RulerSources:
    """What the tasks are made of, beside the words of the package."""

    essay: EssayText | None = None
    """For needles in essays."""
    questions: Mapping[str, QuestionSet] = field(default_factory=dict)
    """By `source` of a task."""
    more_words: Sequence[str] = ()
    """For lists of more words than the package has."""


Tokens = Callable[[str], int]
"""Number of tokens of a text, without BOS."""
Stream = Iterator[tuple[RulerSample, int]]
"""Samples, each with the number of tokens of prompt and answer."""


def ruler_samples(name: str, length: int, seed: int, tokens: Tokens, sources: RulerSources) -> Stream:
    """The samples of a task, without end but for questions, which end with their data set.

    Args:
        name: of the task.
        length: most tokens of prompt and answer.
        seed: of all random numbers.
        tokens: of the model's tokenizer.
        sources: with what the task needs.

    Raises:
        ValueError: the length is too short for the task, or that of variable tracking's example (500) is.
    """
    task = RULER_TASKS[name]
    try:
        yield from _STREAMS[task.family](task, length, seed, tokens, sources)
    except ValueError as error:
        raise ValueError(
            f"--tasks {name} does not fit into --lengths {length} with this tokenizer: {error}; use longer --lengths, "
            "or leave the task out"
        ) from error


def _needle_stream(task: RulerTask, length: int, seed: int, tokens: Tokens, sources: RulerSources) -> Stream:
    prompts = NeedlePrompts(task, seed, key_words() if task.key_kind == "words" else (), sources.essay)
    step = prompts.step(length)

    def _count(sample: RulerSample) -> int:
        return tokens(sample.prompt) + task.budget

    high = _three_times(tokens(prompts.draw(step).prompt), step, length)
    size = largest_size(lambda size: _count(prompts.draw(size)) <= length, step, high)
    while True:
        yield fitting_sample(prompts.draw, _count, size, step, length)


def _variable_stream(task: RulerTask, length: int, seed: int, tokens: Tokens, sources: RulerSources) -> Stream:
    prompts = VariablePrompts(seed)

    def _search(step: int, limit: int, extra: int, example: bool) -> int:
        high = _three_times(tokens(prompts.draw(step, example=example).prompt), step, limit)
        return largest_size(
            lambda size: tokens(prompts.draw(size, example=example).prompt) + extra <= limit, step, high
        )

    size = _search(5, _EXAMPLE_LENGTH, 0, True)
    first, _ = fitting_sample(
        lambda size: prompts.draw(size, example=True), lambda sample: tokens(sample.prompt), size, 5, _EXAMPLE_LENGTH
    )
    example, step = solved(first), prompts.step(length)
    size = _search(step, length, tokens(example) + task.budget, False)
    while True:
        yield fitting_sample(
            lambda size: prompts.after_example(prompts.draw(size), example),
            lambda sample: tokens(sample.prompt) + task.budget, size, step, length,
        )  # fmt: skip


def _common_word_stream(task: RulerTask, length: int, seed: int, tokens: Tokens, sources: RulerSources) -> Stream:
    prompts = CommonWordPrompts(seed, list_words(), sources.more_words, length)
    step, estimated = prompts.STEP, prompts.SIZE_OF_ESTIMATE

    def _count(sample: RulerSample) -> int:
        return tokens(sample.prompt) + task.budget

    per_word = tokens(prompts.draw(estimated).prompt) / estimated
    high = min(max(int(length // per_word) * 2, 2 * step), prompts.most)
    size = largest_size(lambda size: _count(prompts.draw(size)) <= length, step, high)
    while True:
        yield fitting_sample(prompts.draw, _count, size, step, length)


def _frequent_word_stream(task: RulerTask, length: int, seed: int, tokens: Tokens, sources: RulerSources) -> Stream:
    prompts = FrequentWordPrompts(seed, lambda sample: tokens(sample.prompt), length - task.budget)
    while True:
        sample = prompts.draw()
        yield sample, tokens(sample.prompt) + task.budget


def _question_stream(task: RulerTask, length: int, seed: int, tokens: Tokens, sources: RulerSources) -> Stream:
    data = sources.questions[task.source]
    prompts, step = QuestionPrompts(seed, data), QuestionPrompts.STEP

    def _count(sample: RulerSample) -> int:
        return tokens(sample.prompt) + task.budget

    high = _three_times(tokens(prompts.draw(0, step).prompt), step, length)
    size = largest_size(lambda size: _count(prompts.draw(0, size)) <= length, step, high)
    for number in range(len(data.questions)):
        yield fitting_sample(partial(prompts.draw, number), _count, size, step, length)


def _three_times(tokens: int, size: int, length: int) -> int:
    """The largest size that is tried, from the tokens of a draw of `size`."""
    return max(int(length / (tokens / size) * 3), 2 * size)


_STREAMS: dict[str, Callable[[RulerTask, int, int, Tokens, RulerSources], Stream]] = {
    "needles": _needle_stream,
    "variables": _variable_stream,
    "common words": _common_word_stream,
    "frequent words": _frequent_word_stream,
    "questions": _question_stream,
}
