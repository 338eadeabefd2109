"""Text files that an evaluation reads: plain or gzip, told by content. Free of torch."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

_GZIP_MAGIC = b"\x1f\x8b"


def check_text_files(flag: str, paths: Sequence[str]) -> None:
    """Raise ValueError if no file is given or one does not exist; `flag` is the option that names them."""
    if not paths:
        raise ValueError(f"{flag} is empty; give at least one text file")
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"{flag} {path} does not exist or is not a file")


def read_text_file(flag: str, path: str) -> str:
    """The text of a file.

    Raises:
        ValueError: the file has no text, is damaged or is not UTF-8; the message names `flag`.
    """
    data = Path(path).read_bytes()
    try:
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{flag} {path} contains damaged gzip data: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{flag} {path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at {error.start}"
        ) from error
    if not text.strip():
        raise ValueError(f"{flag} {path} contains no text")
    return text
