"""What an ablation is asked for. Free of torch, so that the tool's help is instant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...config.tool_options import Metavar
from ..item_runner import RunOptions


@dataclass(frozen=True)
class AblationOptions:
    """The options of tools/run_ablation.py."""

    grid: Annotated[str, Metavar("FILE")]
    """YAML file with the grid: base, seeds, axes, reference"""
    data_path: Annotated[str, Metavar("PREFIX")]
    """dataset that every model is trained on"""
    tokenizer_model: Annotated[str, Metavar("FILE")]
    """SentencePiece model of the dataset"""
    text: Annotated[tuple[str, ...], Metavar("FILE")]
    """held-out text files, plain or gzip; each is one document"""
    output: Annotated[str, Metavar("DIR")]
    """folder for the models and the results"""
    length: int = 32768
    """tokens of every held-out document that are read"""
    needle_lengths: tuple[int, ...] = ()
    """also measure recall at these context lengths, in the first held-out document (default: not measured)"""
    needle_samples: int = 20
    """contexts per length"""
    max_hours: float | None = None
    """start no further seed that would not finish within this many hours (default: no limit)"""
    workers: int = RunOptions.workers
    """number of models that are trained and measured at once"""
    overwrite: bool = False
    """discard the models and results in --output and begin anew"""

    def __post_init__(self) -> None:
        """Raises ValueError for numbers out of range."""
        for flag, number, least in (
            ("--length", self.length, 1024),
            ("--needle-samples", self.needle_samples, 5),
            ("--workers", self.workers, 1),
        ):
            if number < least:
                raise ValueError(f"{flag} {number} must be at least {least}")
        if self.max_hours is not None and not self.max_hours > 0:
            raise ValueError(f"--max-hours {self.max_hours} must be above 0")

    def run_options(self, command: Sequence[str]) -> RunOptions:
        """How it is measured; `command` goes into the report."""
        return RunOptions(Path(self.output), self.workers, "cpu", self.overwrite, command)
