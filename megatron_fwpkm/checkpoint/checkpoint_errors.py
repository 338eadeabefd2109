"""Errors of saving and loading for people: which rank, which file, and which checkpoint is intact."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint import CheckpointException

_WRITER_SIGNS = ("PytorchStreamWriter", "inline_container", "iostream error")
"""What torch.save says when a file cannot be written, whatever the reason."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
MARGIN = 0.9
"""Part of an estimated size that must be free: an estimate is not refused for a few percent."""


class CheckpointError(ValueError):
    """A checkpoint could not be written; names rank, file and the last good checkpoint."""


def free_bytes(root: Path) -> int | None:
    """Free bytes on the disk of a folder; None if its file system does not say."""
    usage = shutil.disk_usage(root)
    return usage.free if usage.total > 0 else None


def check_room(name: str, root: Path, needed: int) -> int | None:
    """The free bytes of a disk on which the checkpoint `name` of about `needed` bytes is to be written.

    Raises CheckpointError where they are too few.
    """
    free = free_bytes(root)
    if free is not None and free < MARGIN * needed:
        raise CheckpointError(f"{name} was not written to {root}: {_no_room(needed, free)}; {_last_good(root)}")
    return free


@contextmanager
def explained(rank: int, name: str, root: Path, needed: int = 0) -> Iterator[None]:
    """Turn what goes wrong inside, while the checkpoint `name` of the folder `root` is written, into CheckpointError.

    `needed` is about how many bytes it has, by which a full disk is recognised where an error does not say it. The
    caller has removed what was written when an error leaves the block. An error that leaves it while other ranks wait
    for this one ends this process, and with it their waiting.
    """
    try:
        yield
    except CheckpointError:
        raise
    except CheckpointException as error:
        found = {where: wrapped[0] for where, wrapped in error.failures.items()}
        raise CheckpointError(_sentence(name, root, needed, found)) from error
    except (RuntimeError, OSError, ValueError) as error:
        # What rank 0 does for all comes as ValueError with the text of the system's error.
        known = isinstance(error, OSError) or str(error).startswith("[Errno ")
        if not known and not any(sign in str(error) for sign in _WRITER_SIGNS):
            raise
        whose = 0 if isinstance(error, ValueError) else rank
        raise CheckpointError(_sentence(name, root, needed, {whose: error})) from error


def _sentence(name: str, root: Path, needed: int, found: dict[int, BaseException]) -> str:
    causes = "; ".join(f"rank {where}: {_first_line(error)}" for where, error in found.items())
    causes = causes or "a writer failed on another rank"
    free = free_bytes(root)
    if any(_says_full(error) for error in found.values()) or (
        free is not None and free < MARGIN * needed and any(_may_be_full(error) for error in found.values())
    ):
        reason = f"{_no_room(needed, free)}; the incomplete checkpoint was removed ({causes})"
        return f"{name} could not be written to {root}: {reason}; {_last_good(root)}"
    return f"{name} could not be written to {root}: {causes}; {_last_good(root)}"


def _says_full(error: BaseException) -> bool:
    texts = tuple(os.strerror(number) for number in _FULL)
    return (isinstance(error, OSError) and error.errno in _FULL) or any(text in str(error) for text in texts)


def _may_be_full(error: BaseException) -> bool:
    return any(sign in str(error) for sign in _WRITER_SIGNS)


def _no_room(needed: int, free: int | None) -> str:
    room = "" if free is None else f", but only {free / 2**20:,.1f} MiB are free"
    return (
        f"the disk is full. A checkpoint needs about {needed:,} bytes{room} (a run keeps --keep-last checkpoints and "
        "one more while it saves); free some space, then continue with --resume, or use another --save folder"
    )


def _last_good(root: Path) -> str:
    from .manager import latest_checkpoint

    good = latest_checkpoint(root)
    return f"the last complete checkpoint is {good}" if good is not None else "there is no earlier checkpoint"


def _first_line(error: BaseException) -> str:
    """`No space left on device: model/__0_0.distcp`, or kind and first line of an error that is not the system's."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        return os.strerror(error.errno) + where
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
