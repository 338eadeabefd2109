"""How far a preprocessing run has come, so that another can go on from there. Free of torch."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..indexed.indexed_format import naming

CHECKPOINT_SECONDS = 10.0
"""Time between two checkpoints."""


class Journal:
    """A small file beside the output, replaced as a whole, so that a kill leaves the old or the new one."""

    def __init__(self, path: Path, signature: str) -> None:
        self.path = path
        self._signature = signature
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._last >= CHECKPOINT_SECONDS

    def read(self) -> dict[str, Any] | None:
        """The state of an earlier run, None when there is none.

        Raises:
            ValueError: it is of a run with other options, inputs or tokenizer.
        """
        try:
            state: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{self.path} is not a journal of this tool; remove it to start over") from error
        if state["signature"] != self._signature:
            raise ValueError(
                f"--resume: {self.path} belongs to a run with different options, inputs or tokenizer; repeat that "
                "run's command, or start over with --overwrite"
            )
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        partial = self.path.with_name(self.path.name + ".new")
        with naming(partial), open(partial, "w", encoding="utf-8") as stream:
            json.dump(state | {"signature": self._signature}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, self.path)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the journal: the run is over."""
        self.path.unlink(missing_ok=True)
        self.path.with_name(self.path.name + ".new").unlink(missing_ok=True)


def signature(parts: Any) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class BadRecordsFile:
    """Lines beside their final place, renamed there at the end: the quarantine."""

    def __init__(self, path: Path, *, overwrite: bool, resume: bool) -> None:
        if path.exists() and not overwrite:
            raise ValueError(f"{path} already exists; give another --output-prefix, or use --overwrite to replace it")
        self.keep = False
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._stream = open(self._partial, "ab" if resume else "wb")

    def __enter__(self) -> BadRecordsFile:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.keep:
            self._partial.unlink(missing_ok=True)
        with suppress(OSError):  # what a full disk still refuses is not wanted any more
            self._stream.close()

    def add(self, row: dict[str, Any]) -> None:
        """Keep one record."""
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with naming(self._partial):
            self._stream.write(line)

    def checkpoint(self) -> int:
        """Put all on disk; the result is for `restore`."""
        with naming(self._partial):
            self._stream.flush()
            os.fsync(self._stream.fileno())
        return self._stream.tell()

    def restore(self, size: int) -> None:
        """Go back to a checkpoint of an earlier run.

        Raises ValueError where lines from before it are gone.
        """
        found = os.fstat(self._stream.fileno()).st_size
        if found < size:
            self.keep = True
            raise ValueError(
                f"{self._partial} has only {found} of the {size} bytes that the interrupted run wrote; start over "
                "with --overwrite"
            )
        self._stream.truncate(size)

    def prepare(self) -> list[tuple[Path, Path]]:
        """The rename that publishes it."""
        self.checkpoint()
        return [(self._partial, self._path)]
