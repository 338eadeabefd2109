"""Checkpoint folders of a run: atomic publish, the `latest` marker, retention, and finding what to load.

root/iter_0000020/{model/, fast_weights/, config.yaml, rng_*.pt, tokenizer..., run.json}
root/latest                       text: the name of the newest published folder
root/.iter_0000030.partial        being written; renamed when every rank has finished and everything is on disk
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..distributed.ranks import barrier, on_rank_zero
from .checkpoint_errors import check_room
from .record import RECORD_NAME, RunRecord, write_record

LATEST = "latest"
_FOLDER = re.compile(r"iter_(\d{7,})$")
_LEFTOVER = re.compile(r"\.iter_(\d{7,})\.(partial|replaced)$")


def folder_name(iteration: int) -> str:
    """Name of the folder of an iteration: iter_0000020."""
    return f"iter_{iteration:07d}"


class CheckpointManager:
    """Owns one --save folder. Methods that write are called by every rank; rank 0 touches the folder structure."""

    def __init__(self, root: Path, keep_last: int, retain_interval: int | None = None) -> None:
        """`keep_last` published checkpoints stay (0: all), and those at a multiple of `retain_interval`.

        The one that `latest` names is never deleted.
        """
        self.root = root
        self.keep_last = keep_last
        self.retain_interval = retain_interval
        self._partial: Path | None = None
        """What is being written."""
        self.check_held: Callable[[], None] = lambda: None
        """Raises ValueError where another run has taken the folder over; rank 0 calls it before it changes anything."""

    def prepare(self, *, resume: bool) -> None:
        """Create the folder and check that it is writable, before hours of training are spent.

        Raises ValueError when it cannot, or when it holds checkpoints and `resume` is not set.
        """
        on_rank_zero(lambda: self._prepare(resume))

    def _prepare(self, resume: bool) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise ValueError(
                f"--save {self.root} cannot be written: {error.strerror}; choose another folder"
            ) from error
        found = published(self.root)
        if found and not resume:
            raise ValueError(
                f"--save {self.root} already contains {found[-1].name}; continue with --resume, or use another folder"
            )

    @contextmanager
    def publish(self, iteration: int, record: RunRecord) -> Iterator[Path]:
        """Yield the folder that every rank writes its part into; afterwards it is published under its final name.

        Nothing is published unless every rank leaves the block without an error: a rank that fails ends, and the
        others fail at the barrier behind the block.
        """
        partial = self.begin(iteration)
        yield partial
        self.end(iteration, record)

    def begin(self, iteration: int, needed: int = 0) -> Path:
        """The folder that every rank writes its part into; it is not a checkpoint before `end`.

        Incomplete checkpoints of runs that ended while saving are removed. Raises CheckpointError if the disk has
        less than about `needed` bytes free.
        """
        partial = self.root / f".{folder_name(iteration)}.partial"

        def make() -> None:
            """Make the folder that is written into, on rank 0."""
            self.check_held()
            self.root.mkdir(parents=True, exist_ok=True)
            self._forget_leftovers(".partial", iteration + 1)
            check_room(folder_name(iteration), self.root, needed)
            partial.mkdir(parents=True)

        on_rank_zero(make)
        self._partial = partial
        return partial

    def abandon(self) -> None:
        """Remove what was written since `begin`; called by a rank on which that failed."""
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial = None

    def end(self, iteration: int, record: RunRecord) -> None:
        """Publish what every rank has written since `begin`."""
        partial = self.root / f".{folder_name(iteration)}.partial"

        def publish() -> None:
            """Publish what was written and delete what retention lets go, on rank 0."""
            self.check_held()
            write_record(partial, record)
            self._publish(partial, iteration)
            self._forget_old(iteration)

        barrier()
        on_rank_zero(publish)
        self._partial = None

    def _publish(self, partial: Path, iteration: int) -> None:
        """Put everything on disk, then rename, then move the marker: a crash at any point leaves a good state."""
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        final = self.root / folder_name(iteration)
        replaced = self.root / f".{folder_name(iteration)}.replaced"
        if final.exists():  # written by a run that went on from an earlier checkpoint than this one
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        partial.rename(final)
        _sync(self.root)
        self._mark_latest(final)
        shutil.rmtree(replaced, ignore_errors=True)

    def _mark_latest(self, folder: Path) -> None:
        marker = self.root / f".{LATEST}.partial"
        marker.write_text(folder.name + "\n", encoding="utf-8")
        _sync(marker)
        os.replace(marker, self.root / LATEST)
        _sync(self.root)

    def go_back(self, before: int, newest: int) -> Path | None:
        """Make the newest checkpoint from before an iteration the latest one; rank 0 calls it. None without one.

        Those after `newest` are not of this run's course, and none of the later ones is any more: they are hidden at
        once, and deleted when the run has passed their iterations again.
        """
        self.check_held()
        found = published(self.root)
        earlier = [path for path in found if _iteration(path) < before and _iteration(path) <= newest]
        if not earlier:
            return None
        self._mark_latest(earlier[-1])
        for path in found[len(earlier) :]:
            hidden = self.root / f".{path.name}.replaced"
            shutil.rmtree(hidden, ignore_errors=True)
            path.rename(hidden)
        return earlier[-1]

    def _forget_old(self, iteration: int) -> None:
        """Delete published checkpoints that need not stay, and leftovers of runs that ended while writing."""
        if self.keep_last > 0:
            latest = latest_checkpoint(self.root)
            older = [path for path in published(self.root) if _iteration(path) <= iteration]
            for path in older[: -self.keep_last]:
                retained = self.retain_interval is not None and _iteration(path) % self.retain_interval == 0
                if path != latest and not retained:
                    # The record goes first: a deletion that is cut short leaves no folder that looks whole.
                    (path / RECORD_NAME).unlink(missing_ok=True)
                    shutil.rmtree(path, ignore_errors=True)
        self._forget_leftovers("", iteration)

    def _forget_leftovers(self, suffix: str, before: int) -> None:
        """Delete what runs that ended while writing have left of iterations before `before`."""
        for path in self.root.iterdir():
            match = _LEFTOVER.match(path.name)
            if match and path.name.endswith(suffix) and int(match.group(1)) < before:
                shutil.rmtree(path, ignore_errors=True)


def published(root: Path) -> list[Path]:
    """Published checkpoint folders of a run, by iteration."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _FOLDER.match(path.name) and (path / RECORD_NAME).is_file()]
    return sorted(found, key=_iteration)


def latest_checkpoint(root: Path) -> Path | None:
    """The folder that `latest` names; without a marker the newest published one; None where there is none.

    Raises ValueError when the marker names a folder that is gone.
    """
    marker = root / LATEST
    if not marker.is_file():
        found = published(root)
        return found[-1] if found else None
    name = marker.read_text(encoding="utf-8").strip()
    if not _FOLDER.match(name) or not (root / name).is_dir():
        raise ValueError(
            f"{marker} names {name!r}, which is not a checkpoint in {root}; write one of these names into it: "
            f"{', '.join(path.name for path in published(root)) or 'none left'}"
        )
    return root / name


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a user means by `path`: itself, or the latest of a run's --save folder.

    Raises ValueError for a path that is neither.
    """
    if not path.is_dir():
        raise ValueError(
            f"{path} is not a folder; use the --save folder of a run, one of its iter_... folders or, for a model, an "
            "exported folder (nothing is downloaded)"
        )
    if (path / RECORD_NAME).is_file() or _FOLDER.match(path.name) or _LEFTOVER.match(path.name):
        return path
    return latest_checkpoint(path) or path


def _iteration(path: Path) -> int:
    match = _FOLDER.match(path.name)
    assert match is not None, path
    return int(match.group(1))


def _sync(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
