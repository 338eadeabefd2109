"""The options of tools/evaluate_ruler.py. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...config.tool_options import MayBeEmpty, Metavar
from ..item_runner import RunOptions
from .ruler_settings import RulerCondition, RulerSettings, SentenceRule


@dataclass(frozen=True)
class RulerOptions:
    """The options of tools/evaluate_ruler.py; `settings` makes what is measured of them, and checks it."""

    model: Annotated[str, Metavar("DIR")]
    """exported folder, checkpoint or Hugging Face model"""
    output: Annotated[str, Metavar("DIR")]
    """folder for the results"""
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
    model_name: str | None = None
    """name of the model in the report (default: from its folder)"""
    workers: int = RunOptions.workers
    """number of processes"""
    device: Annotated[str, Metavar("NAME")] = RunOptions.device
    """cpu, cuda, cuda:1, ...; auto selects cuda if available"""
    overwrite: bool = False
    """discard the results in --output and measure again"""

    def settings(self) -> RulerSettings:
        """What is measured."""
        return RulerSettings(
            self.model, self.lengths, self.tasks, self.samples, self.conditions, self.haystack, self.sentences,
            self.squad, self.hotpotqa, self.english_words, self.seed, self.effective_threshold,
        )  # fmt: skip

    def run_options(self, command: Sequence[str]) -> RunOptions:
        """How it is measured; `command` goes into the report."""
        return RunOptions(
            output=Path(self.output), workers=self.workers, device=self.device, overwrite=self.overwrite,
            command=command, model_name=self.model_name or "",
        )  # fmt: skip
