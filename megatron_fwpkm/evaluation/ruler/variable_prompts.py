"""Variable tracking: a chain of five assignments in noise, after an example with its answer."""

from __future__ import annotations

import random
import string

import numpy as np

from .needle_prompts import NOISE
from .prompt_sizes import Misfit, RulerSample

HOPS = 4
_EXAMPLE_VALUE = "12345"
_TEXT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find "
    "all variables that are assigned the value {value} in the text above."
)
_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the "
    "value {value}, they are: "
)


class VariablePrompts:
    """Draws the samples of variable tracking. The size is the number of noise sentences."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._numbers = np.random.RandomState(seed)  # NVIDIA's generator draws values from NumPy's legacy generator

    def step(self, length: int) -> int:
        """The smallest size, and what is taken off a sample that is too long, at this length."""
        return 5 if length < 4096 else 10

    def draw(self, size: int, *, example: bool = False) -> RulerSample:
        """A new sample; as an `example` with shorter names and a fixed value. Raises Misfit if a name occurs twice."""
        names = self._names(3 if example else 5)
        value = _EXAMPLE_VALUE if example else str(self._numbers.randint(10000, 99999))
        if len(names) > HOPS + 1:
            if not example:  # also NVIDIA's generator begins a second chain before it fails
                self._numbers.randint(10000, 99999)
            raise Misfit
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {later} = VAR {earlier} " for earlier, later in zip(names, names[1:], strict=False)]
        lines = [NOISE] * size
        places = sorted(self._random.sample(range(size), len(chain)))
        for before, (place, line) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + before, line)
        return RulerSample(
            _TEXT.format(context="\n".join(lines), value=value), _PREFIX.format(count=len(names), value=value),
            tuple(names),
        )  # fmt: skip

    def after_example(self, sample: RulerSample, example: str) -> RulerSample:
        """The sample behind the example, whose names and value are drawn anew."""
        for name in example.split()[-HOPS - 1 :]:
            example = example.replace(name, self._name(len(name)))
        example = example.replace(_EXAMPLE_VALUE, str(self._numbers.randint(10000, 99999)))
        return RulerSample(f"{example}\n{sample.text}", sample.prefix, sample.answers)

    def _names(self, letters: int) -> list[str]:
        names = [self._name(letters) for _ in range(HOPS + 1)]
        while len(set(names)) < HOPS + 1:
            names.append(self._name(letters))
        return names

    def _name(self, letters: int) -> str:
        return "".join(self._random.choices(string.ascii_uppercase, k=letters))


def solved(example: RulerSample) -> str:
    """An example with its answer, as it stands before every sample."""
    return f"{example.prompt} {' '.join(example.answers)}\n"
