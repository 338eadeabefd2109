"""The options of tools/evaluate_ruler.py. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...config.tool_options import MayBeEmpty, Metavar
from ..evaluation_options import EvaluationOptions
from .ruler_settings import RulerCondition, RulerSettings, SentenceRule


@dataclass(frozen=True)
class RulerOptions(EvaluationOptions):
    """The options of tools/evaluate_ruler.py; `settings` makes what is measured of them, and checks it."""

    lengths: tuple[int, ...]
    """lengths in tokens, the answer's budget included; RULER has 4096 8192 16384 32768 65536 131072"""
    tasks: Annotated[tuple[str, ...], Metavar("TASK"), MayBeEmpty()] = RulerSettings.tasks
    """tasks by name (default: all whose files are given)"""
    samples: int = RulerSettings.samples
    """samples per task and length; RULER's own number is 500"""
    conditions: tuple[RulerCondition, ...] = RulerSettings.conditions
    """modes of the memory; the first is the measured one"""
    haystack: Annotated[tuple[str, ...], Metavar("FILE"), MayBeEmpty()] = RulerSettings.haystack
    """text files in the place of RULER's essays, plain or gzip, or JSON with a field text"""
    sentences: SentenceRule = RulerSettings.sentences
    """cut the haystack into sentences with NLTK's data, as RULER does (punkt), or at punctuation marks (marks)"""
    squad: Annotated[str | None, Metavar("FILE")] = RulerSettings.squad
    """SQuAD 2.0 as JSON, for qa_1"""
    hotpotqa: Annotated[str | None, Metavar("FILE")] = RulerSettings.hotpotqa
    """HotpotQA with distractors as JSON, for qa_2"""
    english_words: Annotated[str | None, Metavar("FILE")] = RulerSettings.english_words
    """RULER's english_words.json, for lists of more words than the package wonderwords has"""
    seed: int = RulerSettings.seed
    """seed of the samples"""
    effective_threshold: float = RulerSettings.effective_threshold
    """mean score above which a length is effective; RULER takes that of Llama2-7B at 4,096 tokens"""

    def settings(self) -> RulerSettings:
        """What is measured."""
        return RulerSettings(
            self.model, self.lengths, self.tasks, self.samples, self.conditions, self.haystack, self.sentences,
            self.squad, self.hotpotqa, self.english_words, self.seed, self.effective_threshold,
        )  # fmt: skip
