"""Errors of saving and loading as people need them: which rank, which file, and what is still good."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint import CheckpointException

_WRITER_SIGNS = ("PytorchStreamWriter", "inline_container", "iostream error")
"""What torch.save says when a file cannot be written."""


class CheckpointError(ValueError):
    """A checkpoint could not be written; names rank, file and the last good checkpoint."""


@contextmanager
def explained(rank: int, name: str, root: Path) -> Iterator[None]:
    """Turn what goes wrong inside, while the checkpoint `name` of the folder `root` is written, into CheckpointError.

    An error that leaves the block while other ranks wait for this one ends this process, and with it their waiting.
    """
    try:
        yield
    except CheckpointException as error:
        causes = "; ".join(f"rank {where}: {_first_line(wrapped[0])}" for where, wrapped in error.failures.items())
        raise CheckpointError(_sentence(name, root, causes or "a writer failed on another rank")) from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _WRITER_SIGNS):
            raise
        raise CheckpointError(_sentence(name, root, f"rank {rank}: {_first_line(error)}")) from error
    except OSError as error:
        raise CheckpointError(_sentence(name, root, f"rank {rank}: {_first_line(error)}")) from error


def _sentence(name: str, root: Path, causes: str) -> str:
    from .manager import latest_checkpoint

    good = latest_checkpoint(root)
    rest = f"{good} is the last good checkpoint" if good is not None else "there is no earlier checkpoint"
    return f"{name} could not be written to {root}: {causes}; {rest}"


def _first_line(error: BaseException) -> str:
    """`No space left on device: model/__0_0.distcp`, or kind and first line of an error that is not the system's."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        return os.strerror(error.errno) + where
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
