"""What a needle evaluation measures. Free of torch, so that the tool's help is instant."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ...config import NeedleConfig

Protocol = Literal["official", "ask-after-write", "streaming"]
Control = Literal["memory-off", "frozen", "never-shown"]
Chunk = Literal["training", "input"]
MemoryReset = Literal["never", "sample", "file"]
LengthUnit = Literal["tokens", "words"]
NeedleKind = Literal["words", "digits", "uuid"]
DistractorKind = Literal["same-key", "same-value"]
MEMORY_ON = "memory-on"
"""Name of the measured condition, beside those of the controls."""
NO_MEMORY = "no-memory"
"""Name of it where the model has no fast-weight memory."""

NUMBER_TEMPLATE = "The secret number for ID-{key} is {value}."
"""The paper's sentence, for facts that are not words."""
WRITTEN_NOTHING = ("memory-off", "frozen")
"""Conditions in which the context writes nothing, so that reading it again changes nothing."""

PROTOCOL_MEANINGS = {
    "official": "The paper's: context and question are one input. What has filled a chunk is written while the input "
    "is read, the rest after its last token; then the answer is generated. Where the whole input is one chunk, the "
    "first token of the answer thus comes from a memory that has not read the context, unless it was read before.",
    "ask-after-write": "The context is read once and tokens that still wait are written to the memory. The question is "
    "then asked and answered while the memory is frozen.",
    "streaming": "The question follows the context like any other text: waiting tokens keep waiting, and the memory is "
    "still written while the answer is generated.",
}
CONTROL_MEANINGS = {
    "memory-off": "The same contexts and questions, but the memory is the initial one and is never written: recall by "
    "attention alone.",
    "frozen": "The same with the memory that earlier contexts have left, which is read and not written. Where every "
    "context starts from the initial memory, this is memory-off.",
    "never-shown": "A question of the same form about a fact that is not in the context: the chance level.",
}
RESET_MEANINGS = {
    "sample": "Every context starts from the model's initial memory.",
    "file": "The memory goes on from context to context of one length and file: what earlier contexts and their "
    "questions wrote is still there.",
    "never": "The memory goes on from context to context through all lengths: what earlier contexts and their "
    "questions wrote is still there.",
}
CHUNK_MEANINGS = {
    "training": "The memory is written after every chunk of the model's size.",
    "input": "The whole input is one chunk: one write per pass.",
}
CONDITION_TITLES = {
    MEMORY_ON: "memory on",
    NO_MEMORY: "no memory",
    "memory-off": "control: memory off",
    "frozen": "control: memory frozen",
    "never-shown": "control: never shown",
}
"""Titles of the panels of the heatmap."""


def short_length(length: int) -> str:
    """A context length for an axis: 512, 1,500, 8K."""
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


@dataclass(frozen=True)
class NeedleSettings:
    """One needle evaluation. Every sample is drawn from (seed, length, number of the sample) alone; its memory may come
    from samples before it."""

    model: str
    """Folder of an export, a checkpoint or any causal language model of Transformers."""
    haystack: tuple[str, ...]
    """Text files, plain or gzip."""
    lengths: tuple[int, ...]
    """Context lengths in `length_unit`, needles included, question not."""
    depths: int = 5
    """Depths of the asked needle, from 0 % (the context begins with it) to 100 % (it ends with it), evenly spaced."""
    samples: tuple[int, ...] = (50,)
    """Contexts per length, spread over the depths in turn: one number for all lengths, or one for each of `lengths`."""
    needles: int = 5
    """Facts in a context; one of them is asked."""
    protocol: Protocol = "ask-after-write"
    """Key of PROTOCOL_MEANINGS."""
    controls: tuple[Control, ...] = ("memory-off", "frozen", "never-shown")
    """Keys of CONTROL_MEANINGS."""
    needle: NeedleConfig = field(default_factory=NeedleConfig)
    """Wording of the facts: template, key_words and value_words."""
    seed: int = 1
    """Seed of contexts, facts and places."""
    reads: tuple[int, ...] = (1,)
    """How many times a context is read before the answer; all are measured in one pass."""
    chunk: Chunk = "training"
    """Key of CHUNK_MEANINGS."""
    memory_reset: MemoryReset = "sample"
    """Key of RESET_MEANINGS."""
    length_unit: LengthUnit = "tokens"
    """What `lengths` count."""
    needle_kind: NeedleKind = "words"
    """What keys and values are."""
    distractors: int = 0
    """Further facts in a context that are easily taken for the asked one."""
    distractor_kind: DistractorKind = "same-key"
    """What they have in common with it: all of the key but its end, or the value."""
    segment: int = 4096
    """Tokens of a context that one call reads; changes results by rounding at most."""
    batch_size: int = 1
    """Contexts of one length that are read together, each with a memory of its own; changes results by rounding."""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be measured."""
        _check_choices(self)
        for name, number, least in (
            ("--depths", self.depths, 1),
            ("--needles", self.needles, 1),
            ("--distractors", self.distractors, 0),
            ("--segment", self.segment, 1),
            ("--batch-size", self.batch_size, 1),
        ):
            if number < least:
                raise ValueError(f"{name} {number} must be at least {least}")
        for name, numbers in (("--lengths", self.lengths), ("--reads", self.reads)):
            given = " ".join(map(str, numbers))
            if not numbers or min(numbers) < 1:
                raise ValueError(f"{name} {given} must be one or more positive integers")
            if len(set(numbers)) != len(numbers):
                raise ValueError(f"{name} {given} contains the same {name[2:-1]} twice")
        given = " ".join(map(str, self.samples))
        if len(self.samples) not in (1, len(self.lengths)):
            raise ValueError(
                f"--samples {given} has {len(self.samples)} numbers for {len(self.lengths)} --lengths; give one number "
                "for all lengths, or one per length"
            )
        if min(self.samples) < self.depths:
            raise ValueError(f"--samples {given} must be at least --depths {self.depths}: one sample per depth")
        _check_combinations(self)

    def samples_at(self, length: int) -> int:
        """Contexts of this length."""
        return self.samples[self.lengths.index(length) if len(self.samples) > 1 else 0]

    def described_samples(self) -> str:
        """Contexts per length, for people."""
        least, most = min(self.samples), max(self.samples)
        return str(most) if least == most else f"{least} to {most}"

    @property
    def carries_memory(self) -> bool:
        """Whether a context starts from the memory that the one before has left."""
        return self.memory_reset != "sample"

    def depth_grid(self) -> tuple[float, ...]:
        """The depths as fractions; a single depth is the middle."""
        if self.depths == 1:
            return (0.5,)
        return tuple(index / (self.depths - 1) for index in range(self.depths))

    def conditions(self, has_memory: bool = True) -> tuple[str, ...]:
        """What is asked of every sample: the measured condition, then the controls that make sense for the model."""
        if has_memory:
            return (MEMORY_ON, *self.controls)
        return (NO_MEMORY, *(control for control in self.controls if control not in WRITTEN_NOTHING))

    def measured_reads(self, has_memory: bool = True) -> tuple[int, ...]:
        """Numbers of reads, ascending; a model without memory gains nothing from another one."""
        return tuple(sorted(self.reads)) if has_memory else (1,)

    def decides_a_sample(self) -> dict[str, Any]:
        """Settings that change what one sample gives; lengths and number of samples only say how many there are, unless
        a memory that is never reset has read the samples before.
        """
        values = asdict(self)
        for name in ("lengths", "samples"):
            del values[name]
        if self.memory_reset == "never":
            lengths = sorted(self.lengths)
            values["chain"] = {"lengths": lengths, "samples": [self.samples_at(length) for length in lengths]}
        return values


def _check_choices(settings: NeedleSettings) -> None:
    for name, values, known in (
        ("--protocol", (settings.protocol,), get_args(Protocol)),
        ("--controls", settings.controls, get_args(Control)),
        ("--chunk", (settings.chunk,), get_args(Chunk)),
        ("--memory-reset", (settings.memory_reset,), get_args(MemoryReset)),
        ("--length-unit", (settings.length_unit,), get_args(LengthUnit)),
        ("--needle-kind", (settings.needle_kind,), get_args(NeedleKind)),
        ("--distractor-kind", (settings.distractor_kind,), get_args(DistractorKind)),
    ):
        for value in values:
            if value not in known:
                raise ValueError(f"{name} {value!r} is not known; choose from {', '.join(known)}")


def _check_combinations(settings: NeedleSettings) -> None:
    if settings.protocol == "streaming" and settings.chunk == "input":
        raise ValueError(
            "--protocol streaming writes only full chunks, and with --chunk input the chunk is not full before the end "
            "of the answer; use --protocol ask-after-write or official"
        )
    if settings.carries_memory and len(settings.reads) > 1:
        raise ValueError(
            f"--reads {' '.join(map(str, settings.reads))} with --memory-reset {settings.memory_reset}: what a context "
            "leaves in the memory depends on how often it was read; run once for each number of reads"
        )
    if settings.batch_size > 1 and (settings.carries_memory or settings.length_unit == "words"):
        why = "every context goes on from the memory of the one before" if settings.carries_memory else ""
        raise ValueError(
            f"--batch-size {settings.batch_size} reads contexts of one length together, each with the initial memory: "
            + (why or "with --length-unit words they differ in tokens")
            + "; use --batch-size 1"
        )
