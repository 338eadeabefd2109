"""Progress of an evaluation: a bar on a terminal, otherwise a line per tenth."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunProgress:
    """Counts samples. A context manager."""

    def __init__(self, total: int, done: int, *, quiet: bool = False) -> None:
        """`done` of `total` samples were finished before; a `quiet` one shows nothing."""
        self._quiet = quiet
        self._total = total
        self._done = done
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console, transient=True, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("samples", total=total, completed=done, note="")

    def __enter__(self) -> RunProgress:
        """Show the bar."""
        if self._done and not self._quiet:
            print(f"continuing: {self._done} of {self._total} samples are already finished", file=sys.stderr)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar, also after an error."""
        self._bar.stop()

    def advance(self, note: str) -> None:
        """One more sample is finished; `note` is a short status."""
        self._done += 1
        self._bar.update(self._task, completed=self._done, note=note)
        tenth = max(1, self._total // 10)
        if not (self._quiet or self._console.is_terminal) and (self._done % tenth == 0 or self._done == self._total):
            print(f"{self._done} of {self._total} samples, {note}", file=sys.stderr, flush=True)
