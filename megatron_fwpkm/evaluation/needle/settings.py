"""What a needle evaluation measures. Free of torch, so that the tool's help is instant."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ...config import NeedleConfig

Protocol = Literal["ask-after-write", "streaming"]
Control = Literal["memory-off", "never-shown"]
MEMORY_ON = "memory-on"
"""Name of the measured condition, beside those of the controls."""
NO_MEMORY = "no-memory"
"""Name of it where the model has no fast-weight memory."""

PROTOCOL_MEANINGS = {
    "ask-after-write": "The context is read once and tokens that still wait are written to the memory. The question is "
    "then asked and answered while the memory is frozen.",
    "streaming": "The question follows the context like any other text: waiting tokens keep waiting, and the memory is "
    "still written while the answer is generated.",
}
CONTROL_MEANINGS = {
    "memory-off": "The same contexts and questions, but the memory is never written: recall by attention alone.",
    "never-shown": "A question of the same form about a fact that is not in the context: the chance level.",
}
CONDITION_TITLES = {
    MEMORY_ON: "memory on",
    NO_MEMORY: "no memory",
    "memory-off": "control: memory off",
    "never-shown": "control: never shown",
}
"""Titles of the panels of the heatmap."""


def short_length(length: int) -> str:
    """A context length for an axis: 512, 1,500, 8K."""
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


@dataclass(frozen=True)
class NeedleSettings:
    """One needle evaluation. Every sample is drawn from (seed, length, number of the sample) alone."""

    model: str
    """Folder of an export, a checkpoint or any causal language model of Transformers."""
    haystack: tuple[str, ...]
    """Text files, plain or gzip."""
    lengths: tuple[int, ...]
    """Context lengths in tokens, needles included, question not."""
    depths: int = 5
    """Depths of the asked needle, from 0 % (the context begins with it) to 100 % (it ends with it), evenly spaced."""
    samples: tuple[int, ...] = (50,)
    """Contexts per length, spread over the depths in turn: one number for all lengths, or one for each of `lengths`."""
    needles: int = 5
    """Facts in a context; one of them is asked."""
    protocol: Protocol = "ask-after-write"
    """Key of PROTOCOL_MEANINGS."""
    controls: tuple[Control, ...] = ("memory-off", "never-shown")
    """Keys of CONTROL_MEANINGS."""
    needle: NeedleConfig = field(default_factory=NeedleConfig)
    """Wording of the facts: template, key_words and value_words."""
    seed: int = 1
    """Seed of contexts, facts and places."""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be measured."""
        for name, values, known in (
            ("--protocol", (self.protocol,), get_args(Protocol)),
            ("--controls", self.controls, get_args(Control)),
        ):
            for value in values:
                if value not in known:
                    raise ValueError(f"{name} {value!r} is not known; choose from {', '.join(known)}")
        for name, number in (("--depths", self.depths), ("--needles", self.needles)):
            if number < 1:
                raise ValueError(f"{name} {number} must be at least 1")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"--lengths {' '.join(map(str, self.lengths))} must be one or more positive integers")
        if len(set(self.lengths)) != len(self.lengths):
            raise ValueError(f"--lengths {' '.join(map(str, self.lengths))} contains the same length twice")
        given = " ".join(map(str, self.samples))
        if len(self.samples) not in (1, len(self.lengths)):
            raise ValueError(
                f"--samples {given} has {len(self.samples)} numbers for {len(self.lengths)} --lengths; give one number "
                "for all lengths, or one per length"
            )
        if min(self.samples) < self.depths:
            raise ValueError(f"--samples {given} must be at least --depths {self.depths}: one sample per depth")

    def samples_at(self, length: int) -> int:
        """Contexts of this length."""
        return self.samples[self.lengths.index(length) if len(self.samples) > 1 else 0]

    def described_samples(self) -> str:
        """Contexts per length, for people."""
        least, most = min(self.samples), max(self.samples)
        return str(most) if least == most else f"{least} to {most}"

    def depth_grid(self) -> tuple[float, ...]:
        """The depths as fractions; a single depth is the middle."""
        if self.depths == 1:
            return (0.5,)
        return tuple(index / (self.depths - 1) for index in range(self.depths))

    def conditions(self, has_memory: bool = True) -> tuple[str, ...]:
        """What is asked of every sample: the measured condition, then the controls that make sense for the model."""
        if has_memory:
            return (MEMORY_ON, *self.controls)
        return (NO_MEMORY, *(control for control in self.controls if control != "memory-off"))

    def decides_a_sample(self) -> dict[str, Any]:
        """Settings that change what one sample gives; lengths and number of samples only say how many there are."""
        values = asdict(self)
        for name in ("lengths", "samples"):
            del values[name]
        return values
