"""What becomes of memory that a process has freed: kept for its next step, or given back to the system.

All of this is glibc's. Without it nothing happens, nor do limits change where `MALLOC_TRIM_THRESHOLD_`,
`MALLOC_MMAP_THRESHOLD_` or `GLIBC_TUNABLES` in the environment say what malloc should do.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGE_TENSOR = 32 << 20
"""Bytes from which on a tensor has a mapping of its own, which goes back to the system with the tensor; malloc raises
the limit by itself no further than this, so that large tensors leave no holes."""
_LARGE_TABLE = 1 << 20


def keep_freed_memory() -> bool:
    """Have malloc keep freed memory for the next tensors.

    By default it gives memory back that the next step takes again, and the system fills every page with zeros first. On
    a CPU that can be a quarter of a step. The peak of the process does not change.

    Returns:
        Whether it does so now.
    """
    libc = _changeable_libc()
    return libc is not None and bool(
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_TENSOR) and libc.mallopt(_M_TRIM_THRESHOLD, -1)
    )


def free_large_tables() -> None:
    """Have malloc give large tables back as soon as they are freed.

    It raises the limit above which it does this with the largest table so far, and smaller ones then stay behind
    between what is still in use: 10 to 20 MB of a tokenizer.
    """
    libc = _changeable_libc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_TABLE)


def release_memory() -> None:
    """Give back what is free now: reading a large vocabulary leaves half of its memory behind."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _changeable_libc() -> ctypes.CDLL | None:
    """glibc, if its limits are not the user's."""
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & set(os.environ)
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and not chosen else None
