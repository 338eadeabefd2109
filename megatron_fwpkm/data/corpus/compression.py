"""Compressed files told by their first bytes, read as a stream. Free of torch."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from typing import IO, Any, BinaryIO, Literal

Compression = Literal["", "gzip", "bzip2", "xz", "zstd"]

_MAGIC: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"),
    *((bytes([number]) + b"\x2a\x4d\x18", "zstd") for number in range(0x50, 0x60)),  # skippable frames
)  # fmt: skip
SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
"""Endings of names that say nothing about what is inside."""


def compression_of(head: bytes) -> Compression:
    """The compression of data that begins with `head`; "" for none."""
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "")


class HashingReader(io.RawIOBase):
    """A binary file read once from front to back, with the SHA-256 of what was read."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._digest = hashlib.sha256()
        self.consumed = 0

    def readable(self) -> bool:
        """True: the stream is read only."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes; returns how many, 0 at the end."""
        count: int = self._raw.readinto(buffer) or 0  # type: ignore[attr-defined]
        self._digest.update(memoryview(buffer)[:count])
        self.consumed += count
        return count

    @property
    def sha256(self) -> str:
        """Of all bytes read so far."""
        return self._digest.hexdigest()


class DecodedStream:
    """The content of a file, decompressed where it is compressed.

    Every method raises ValueError naming the file when compressed data is damaged or cut off.
    """

    def __init__(self, stream: IO[bytes], compression: Compression, path: str, buffer: int) -> None:
        self._path = path
        self._compression = compression
        self._stream = _decoder(stream, compression, path, buffer)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, fewer only at the end; everything when negative."""
        return self._guarded(lambda: self._stream.read(size))

    def readline(self) -> bytes:
        """The rest of a line, with its end."""
        return self._guarded(self._stream.readline)

    def peek(self) -> bytes:
        """What comes next, not taken."""
        return self._guarded(lambda: self._stream.peek(1))  # type: ignore[attr-defined]

    def skip(self, count: int) -> None:
        """Leave `count` bytes out."""
        while count and (data := self.read(min(count, 1 << 20))):
            count -= len(data)

    def _guarded(self, action: Any) -> bytes:
        try:
            return bytes(action())
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise self._damaged(error) from error
        except Exception as error:
            if self._compression == "bzip2" and isinstance(error, OSError):
                raise self._damaged(error) from error
            if self._compression == "zstd" and type(error).__name__ == "ZstdError":
                raise self._damaged(error) from error
            raise

    def _damaged(self, error: Exception) -> ValueError:
        told = f"{self._path} contains damaged {self._compression} data: {error}"
        return ValueError(f"{told}; download or compress it again, or leave it out")


class _WholeFrames(io.RawIOBase):
    """zstd frames one after another. The library's own reader takes a cut-off frame for the end; this refuses it."""

    def __init__(self, stream: IO[bytes], library: Any) -> None:
        self._stream = stream
        self._library = library
        self._frame: Any = None
        self._held = b""
        self._input = b""

    def readable(self) -> bool:
        """True: the stream is read only."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes; returns how many, 0 at the end."""
        while not self._held:
            self._input = self._input or self._stream.read(1 << 16)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the data ends inside a frame")
                return 0
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._held = self._frame.decompress(self._input)
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count


def _decoder(stream: IO[bytes], compression: Compression, path: str, buffer: int) -> IO[bytes]:
    decoded: Any
    if compression == "gzip":
        decoded = gzip.GzipFile(fileobj=stream)
    elif compression == "bzip2":
        decoded = bz2.BZ2File(stream)
    elif compression == "xz":
        decoded = lzma.LZMAFile(stream)
    elif compression == "zstd":
        decoded = _WholeFrames(stream, needed_package("zstandard", f"reading the zstd file {path}"))
    else:
        return stream
    return io.BufferedReader(decoded, buffer)


def needed_package(name: str, purpose: str) -> Any:
    """Import an optional package that `purpose` requires. Raises ValueError that says how to install it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ValueError(
            f"{purpose} requires the package {package}, which is not installed: pip install {package}"
        ) from error
