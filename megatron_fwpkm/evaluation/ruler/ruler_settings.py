"""What a RULER evaluation measures. Free of torch, so that the tool's help is instant."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .ruler_tasks import RULER_TASKS

RulerCondition = Literal["on", "frozen", "off"]
SentenceRule = Literal["punkt", "marks"]
WITHOUT_MEMORY = "no memory"
"""Name of the measured condition where the model has no fast-weight memory."""
NEVER_SHOWN = "never shown"
"""Name of the control that is computed for every evaluation."""
LLAMA2_AT_4K = 85.6
"""RULER's threshold of the effective length: what Llama2-7B (chat) scores at its 4,096 tokens."""

RULER_CONDITIONS = {
    "on": "The memory is read and written through prompt and answer, and begins anew with every sample.",
    "frozen": "Prompt and answer are not written. Since every sample begins with the initial memory, this gives the "
    "scores of off, by another way.",
    "off": "The initial memory is read and never written: what attention alone can recall.",
    WITHOUT_MEMORY: "The model has no fast-weight memory.",
    NEVER_SHOWN: "The answers of the first condition, compared with the right answers of the next sample of the same "
    "task and length: what guessing scores. Questions about one paragraph follow each other in qa_1, whose control is "
    "therefore higher.",
}


@dataclass(frozen=True)
class RulerSettings:
    """One RULER evaluation. The samples of a task and a length are drawn in order from the seed alone."""

    model: str
    """Folder of an export, a checkpoint or any causal language model of Transformers."""
    lengths: tuple[int, ...]
    """Lengths in tokens of the model's own tokenizer, the answer's budget included."""
    tasks: tuple[str, ...] = ()
    """Names of RULER_TASKS; empty for all whose files are given."""
    samples: int = 50
    """Samples per task and length; RULER's own number is 500."""
    conditions: tuple[RulerCondition, ...] = ("on", "off")
    """Keys of RULER_CONDITIONS; the first is the measured one."""
    haystack: tuple[str, ...] = ()
    """Text files that stand for RULER's essays, plain or gzip, or JSON with a field `text`."""
    sentences: SentenceRule = "punkt"
    """How essays are cut into sentences: NLTK's Punkt, as RULER does it, or at punctuation marks."""
    squad: str | None = None
    """File of SQuAD 2.0, for qa_1."""
    hotpotqa: str | None = None
    """File of HotpotQA with distractors, for qa_2."""
    english_words: str | None = None
    """Words for lists that need more than the package wonderwords has."""
    seed: int = 42
    """Seed of every task and length."""
    effective_threshold: float = LLAMA2_AT_4K
    """Score above which a length counts as effective."""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be measured."""
        self._check_names()
        if not self.lengths or min(self.lengths) < 256 or len(set(self.lengths)) != len(self.lengths):
            raise ValueError(
                f"--lengths {' '.join(map(str, self.lengths))} must be one or more different numbers of at least 256"
            )
        if self.samples < 1:
            raise ValueError(f"--samples {self.samples} must be at least 1")
        if not 0 <= self.effective_threshold <= 100:
            raise ValueError(f"--effective-threshold {self.effective_threshold} must be between 0 and 100")

    def _check_names(self) -> None:
        for flag, values, known, least in (
            ("--tasks", self.tasks, tuple(RULER_TASKS), 0),
            ("--conditions", self.conditions, get_args(RulerCondition), 1),
            ("--sentences", (self.sentences,), get_args(SentenceRule), 1),
        ):
            for value in values:
                if value not in known:
                    raise ValueError(f"{flag} {value!r} is not known; choose from {', '.join(known)}")
            if len(values) < least or len(set(values)) != len(values):
                raise ValueError(f"{flag} {' '.join(values)} must have at least one value, and each once")
        for name in self.tasks:
            if (source := RULER_TASKS[name].source) and not getattr(self, source):
                raise ValueError(f"--tasks {name} needs --{source}, which is not given")

    def chosen_tasks(self) -> tuple[str, ...]:
        """The tasks in RULER's order, without those whose files are not given."""
        return tuple(
            name
            for name, task in RULER_TASKS.items()
            if (name in self.tasks if self.tasks else not task.source or getattr(self, task.source))
        )

    def left_out(self) -> dict[str, list[str]]:
        """Tasks that were not chosen by name and whose files are not given, by the flag that would give them."""
        found: dict[str, list[str]] = {}
        for name, task in RULER_TASKS.items():
            if not self.tasks and name not in self.chosen_tasks():
                found.setdefault(f"--{task.source}", []).append(name)
        return found

    def asked_conditions(self, has_memory: bool) -> tuple[str, ...]:
        """How the model is asked; a model without memory has one way."""
        return self.conditions if has_memory else (WITHOUT_MEMORY,)

    def decides_a_sample(self) -> dict[str, Any]:
        """Settings that change what one sample gives, but for the files, whose content does."""
        values = asdict(self)
        return {name: values[name] for name in ("conditions", "sentences", "seed")}
