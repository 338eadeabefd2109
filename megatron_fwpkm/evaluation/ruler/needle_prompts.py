"""The eight needle tasks: special magic numbers and uuids in noise, in essays or among other needles."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence

from .prompt_sizes import RulerSample
from .ruler_tasks import RulerTask

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_ASK_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{kind} afterwards.\n{context}\nWhat is the special magic {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text is",
)
_ASK_ALL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} for {query} mentioned in the provided "
    "text?",
    " The special magic {kind} for {query} mentioned in the provided text are",
)
_DEPTHS = [round(100 * step / 39) for step in range(40)]
"""Percentages of the sentences of an essay between which needles may stand."""


class EssayText:
    """Running text, of which a sample takes the first words, cut into sentences."""

    def __init__(self, words: Sequence[str], split: Callable[[str], list[str]]) -> None:
        """`words`: of the text, which begins anew where it ends; `split`: a text to its sentences."""
        self._words, self._split = words, split
        self._last: tuple[int, list[str]] = (0, [])

    def sentences(self, count: int) -> list[str]:
        """Sentences of the first `count` words."""
        if self._last[0] != count:
            times = -(-count // len(self._words))
            text = " ".join((list(self._words) * times)[:count])
            self._last = count, self._split(text.strip())
        return self._last[1]


class NeedlePrompts:
    """Draws the samples of one needle task. The size is the number of sentences, or of words of an essay."""

    def __init__(self, task: RulerTask, seed: int, key_words: Sequence[str], essay: EssayText | None) -> None:
        """`essay`: for a task whose haystack it is."""
        self._task, self._seed, self._key_words, self._essay = task, seed, key_words, essay
        self._random = random.Random(seed)

    def step(self, length: int) -> int:
        """The smallest size, and what is taken off a sample that is too long, at this length."""
        if self._task.haystack == "essay":
            return 500
        return 5 if length < 4096 else 25

    def draw(self, size: int) -> RulerSample:
        """A new sample."""
        task = self._task
        keys, needles = list[str](), list[str]()
        values = list[list[str]]()
        for _ in range(task.keys):
            keys.append(self._key())
            values.append([])
            for _ in range(task.values):
                values[-1].append(self._value())
                needles.append(_NEEDLE.format(kind=task.value_kind, key=keys[-1], value=values[-1][-1]))
        random.Random(self._seed).shuffle(needles)
        context = self._in_essay(size, needles) if task.haystack == "essay" else self._in_sentences(size, needles)
        asked = self._random.sample(range(task.keys), task.queries)
        *before, last = (keys[place] for place in asked)
        query = f"{', '.join(before)}, and {last}" if before else last
        one = task.queries * task.values == 1
        kind = task.value_kind[:-1] if one else task.value_kind
        text, prefix = _ASK_ONE if one else _ASK_ALL
        return RulerSample(
            text.format(kind=kind, context=context, query=query), prefix.format(kind=kind, query=query),
            tuple(value for place in asked for value in values[place]),
        )  # fmt: skip

    def _in_sentences(self, size: int, needles: Sequence[str]) -> str:
        """Needles on lines between lines of noise, or of other needles."""
        if self._task.haystack == "noise":
            lines = [NOISE] * size
        else:
            kind = self._task.value_kind
            lines = [_NEEDLE.format(kind=kind, key=self._key(), value=self._value()) for _ in range(size)]
        places = sorted(self._random.sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)

    def _in_essay(self, size: int, needles: Sequence[str]) -> str:
        """Needles between the sentences of the essay's first words."""
        assert self._essay is not None, "the settings ask for a haystack where a task needs one"
        sentences = self._essay.sentences(size)
        depths = self._random.sample(_DEPTHS, len(needles))
        places = sorted(int(len(sentences) * (depth / 100)) for depth in depths)
        parts = []
        for begin, end, needle in zip([0, *places], places, needles, strict=False):
            parts += [" ".join(sentences[begin:end]), needle]
        return " ".join([*parts, " ".join(sentences[places[-1] :])])

    def _key(self) -> str:
        return self._random.choice(self._key_words) if self._task.key_kind == "words" else self._uuid()

    def _value(self) -> str:
        return str(self._random.randint(10**6, 10**7 - 1)) if self._task.value_kind == "numbers" else self._uuid()

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))
