"""The options of tools/evaluate_needle.py. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...config import NeedleConfig
from ...config.tool_options import MayBeEmpty, Metavar
from ..item_runner import RunOptions
from .settings import Control, NeedleSettings, Protocol


@dataclass(frozen=True)
class NeedleOptions:
    """The options of tools/evaluate_needle.py; `settings` makes what is measured of them, and checks it."""

    model: Annotated[str, Metavar("DIR")]
    """exported folder, checkpoint or Hugging Face model"""
    haystack: Annotated[tuple[str, ...], Metavar("FILE")]
    """text files to hide facts in, plain or gzip"""
    output: Annotated[str, Metavar("DIR")]
    """folder for the results"""
    lengths: tuple[int, ...]
    """context lengths in tokens"""
    depths: int = NeedleSettings.depths
    """depths of the asked needle, from 0 to 100 %"""
    needles: int = NeedleSettings.needles
    """facts per context; the model is asked for one"""
    samples: tuple[int, ...] = NeedleSettings.samples
    """contexts per length, spread over the depths; one number for all lengths or one per length"""
    seed: int = NeedleSettings.seed
    """seed of the samples"""
    protocol: Protocol = NeedleSettings.protocol
    """freeze the memory for the question (ask-after-write), or keep writing to it (streaming)"""
    controls: Annotated[tuple[Control, ...], MayBeEmpty()] = NeedleSettings.controls
    """memory-off never writes to the memory; never-shown asks for a fact that is not in the context"""
    needle_template: str = NeedleConfig.template
    """sentence that states a fact; contains {key} directly before {value}"""
    needle_key_words: int = NeedleConfig.key_words
    """number of words in a key"""
    needle_value_words: int = NeedleConfig.value_words
    """number of words in a value"""
    model_name: str | None = None
    """name of the model in the report (default: from its folder)"""
    workers: int = RunOptions.workers
    """number of processes"""
    device: Annotated[str, Metavar("NAME")] = RunOptions.device
    """cpu, cuda, cuda:1, ...; auto selects cuda if available"""
    overwrite: bool = False
    """discard the results in --output and measure again"""

    def settings(self) -> NeedleSettings:
        """What is measured."""
        needle = NeedleConfig(
            template=self.needle_template, key_words=self.needle_key_words, value_words=self.needle_value_words
        )
        return NeedleSettings(
            self.model, self.haystack, self.lengths, self.depths, self.samples, self.needles, self.protocol,
            tuple(dict.fromkeys(self.controls)), needle, self.seed,
        )  # fmt: skip

    def run_options(self, command: Sequence[str]) -> RunOptions:
        """How it is measured; `command` goes into the report."""
        return RunOptions(
            Path(self.output), self.workers, self.device, self.overwrite, command, self.model_name or ""
        )
