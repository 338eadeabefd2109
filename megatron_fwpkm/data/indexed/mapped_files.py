"""Files mapped into memory that keep no descriptor open.

`numpy.memmap` holds the descriptor of its file for as long as it lives: a blend of some hundred datasets, each with its
tokens, its index and three cached orders, then needs more of them than a process may have.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


def map_file(path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of a file, read-only; pages are read when they are touched. Raises OSError that names the file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if not size:
            return np.zeros(0, np.uint8)
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
    memory = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, size).atexit = False
    array = np.frombuffer(memoryview(memory), np.uint8)
    array.flags.writeable = False
    return array


def map_array(path: str | Path, dtype: np.dtype[Any] | type[np.generic], offset: int, count: int) -> np.ndarray:
    """`count` numbers of a file from byte `offset` on; raises ValueError where the file is shorter."""
    return np.frombuffer(map_file(path).data, np.dtype(dtype), count, offset)


def without_descriptor(array: np.ndarray) -> np.ndarray:
    """The same numbers as a `numpy.memmap`, which can be dropped then; other arrays come back as they are."""
    if not isinstance(array, np.memmap):
        return array
    assert array.filename is not None
    return map_array(array.filename, array.dtype, array.offset, array.size).reshape(array.shape)
