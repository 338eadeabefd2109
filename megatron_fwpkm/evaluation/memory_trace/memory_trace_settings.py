"""What a memory trace looks at. Free of torch, so that the tool's help is instant."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ...config import NeedleConfig
from ..needle.settings import NeedleSettings

Mode = Literal["ask-after-write", "streaming", "memory-off"]

MODE_MEANINGS = {
    "ask-after-write": "The context is read, tokens that still wait are written, and the question is then answered "
    "while the memory is frozen.",
    "streaming": "The question follows the context like any other text: waiting tokens keep waiting, and the memory is "
    "still written while the answer is generated.",
    "memory-off": "The memory is never written: slots of the initial memory are read, which nobody wrote.",
}


@dataclass(frozen=True)
class MemoryTraceSettings:
    """One memory trace: of needle samples, or of an answer to a prompt after a text."""

    model: str
    """Folder of an export or a checkpoint with a product key memory."""
    haystack: tuple[str, ...] = ()
    """Text files that needle samples are cut from; empty for a text of one's own."""
    length: int = 4096
    """Tokens of a sample's context."""
    depth: float | None = None
    """Depth of the asked needle from 0 to 1; None takes the depths in turn, as the evaluation of needles does."""
    depths: int = NeedleSettings.depths
    """Depths that are taken in turn."""
    index: int = 0
    """Number of the first sample among those of its length."""
    samples: int = 1
    """Samples."""
    needles: int = NeedleSettings.needles
    """Facts in a context; one of them is asked."""
    needle: NeedleConfig = field(default_factory=NeedleConfig)
    """Wording of the facts."""
    seed: int = NeedleSettings.seed
    """Seed of contexts, facts and places."""
    text: str | None = None
    """Text file to read instead of a needle sample."""
    prompt: str | None = None
    """What to continue behind the text."""
    max_new_tokens: int = 16
    """Longest answer to a prompt; that to a needle is as long as its value."""
    mode: Mode = "ask-after-write"
    """Key of MODE_MEANINGS."""
    reads: int = 1
    """How often the context is read before the question."""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be traced."""
        if self.mode not in get_args(Mode):
            raise ValueError(f"--mode {self.mode!r} is not known; choose from {', '.join(get_args(Mode))}")
        if bool(self.haystack) == (self.text is not None):
            raise ValueError("give either --haystack, for a needle sample, or --text with --prompt")
        if (self.text is None) != (self.prompt is None):
            raise ValueError("--text and --prompt go together: the prompt is asked behind the text")
        if self.text is not None and self.samples > 1:
            raise ValueError(f"--samples {self.samples} needs --haystack: a text with a prompt is one sample")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"--depth {self.depth:g} must be between 0 and 1, e.g. 0.5 for the middle")
        for name, least in (("length", 1), ("depths", 1), ("index", 0), ("samples", 1), ("needles", 1), ("reads", 1),
                            ("max_new_tokens", 1)):  # fmt: skip
            if (number := getattr(self, name)) < least:
                raise ValueError(f"--{name.replace('_', '-')} {number} must be at least {least}")

    def needle_settings(self) -> NeedleSettings:
        """The evaluation of needles that has the same samples."""
        return NeedleSettings(
            model=self.model, haystack=self.haystack, lengths=(self.length,), depths=self.depths,
            samples=(max(self.depths, self.index + self.samples),), needles=self.needles, needle=self.needle,
            seed=self.seed,
        )  # fmt: skip

    def depth_of(self, index: int) -> float:
        """The depth of a sample."""
        grid = self.needle_settings().depth_grid()
        return grid[index % len(grid)] if self.depth is None else self.depth

    def decides_a_trace(self) -> dict[str, Any]:
        """Settings that change the trace of one sample; which samples there are they do not say."""
        values = asdict(self)
        for name in ("model", "haystack", "text", "samples", "depths", "index"):
            del values[name]
        return values
