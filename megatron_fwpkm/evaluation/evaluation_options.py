"""The options that every evaluation has. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..config.tool_options import Metavar
from .item_runner import RunOptions


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Which model is measured, where the results go, and how it is done."""

    model: Annotated[str, Metavar("DIR")]
    """exported folder, checkpoint or Hugging Face model"""
    output: Annotated[str, Metavar("DIR")]
    """folder for the results"""
    model_name: str | None = None
    """name of the model in the report (default: from its folder)"""
    workers: int = RunOptions.workers
    """number of processes"""
    device: Annotated[str, Metavar("NAME")] = RunOptions.device
    """cpu, cuda, cuda:1, ...; auto selects cuda if available"""
    overwrite: bool = False
    """discard the results in --output and measure again"""

    def run_options(self, command: Sequence[str]) -> RunOptions:
        """How it is measured; `command` goes into the report."""
        return RunOptions(Path(self.output), self.workers, self.device, self.overwrite, command, self.model_name or "")
