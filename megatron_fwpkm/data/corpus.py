"""Raw text on its way to documents: files to blocks, blocks to records, every bad record named. Free of torch.

A block is a stretch of one file that holds whole records. One process cuts blocks (compressed text can only be read
from its start), any process turns a block into records. New formats and compressions are new entries here, the rest of
the way stays as it is.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

BLOCK_BYTES = 1 << 20
"""Bytes after which a block ends at the next whole record."""
_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"
_JSONL_SUFFIXES = (".jsonl", ".json", ".ndjson")

TxtDocuments = Literal["file", "paragraph", "line"]
Kind = Literal["jsonl", "file", "paragraph", "line"]


@dataclass(frozen=True)
class Block:
    """Whole records of one file: `data` begins at line `first_line` (from 1); when the block is done, `consumed` bytes
    of
    all input, as it lies on disk, have been read."""

    path: str
    kind: Kind
    first_line: int
    data: bytes
    consumed: int


@dataclass(frozen=True)
class Record:
    """A document: its text under each of the wanted keys."""

    line: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class BadRecord:
    """What was found instead of a document. `reason` is one of a few words to count by, `detail` says more."""

    path: str
    line: int
    reason: str
    detail: str
    raw: bytes

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class CorpusFile:
    """One input file, plain or gzip by content. Raises ValueError or OSError when it cannot be read at all."""

    def __init__(self, path: str, txt_documents: TxtDocuments) -> None:
        self.path = path
        if not Path(path).exists():
            raise ValueError(f"--input {path} does not exist")
        if not Path(path).is_file():
            raise ValueError(f"--input {path} is not a file; name files, for example {path.rstrip('/')}/*.jsonl")
        self.size = Path(path).stat().st_size
        with open(path, "rb") as raw:
            self.compressed = raw.read(2) == _GZIP_MAGIC
        self.kind: Kind = "jsonl" if self._is_jsonl() else txt_documents

    def blocks(self, before: int = 0) -> Iterator[Block]:
        """The file's blocks in order; at most one of about BLOCK_BYTES (or one record) is in memory. `before`: bytes of
        the input in front of this file.

        Raises:
            ValueError: compressed data that is damaged or cut off.
        """
        line = 1
        with open(self.path, "rb") as raw, self._decoded(raw) as stream:
            data = self._read_block(stream).removeprefix(_BOM)
            while data or (self.kind == "file" and line == 1):  # an empty file is an empty document
                yield Block(self.path, self.kind, line, data, before + raw.tell())
                line += max(1, data.count(b"\n"))
                data = self._read_block(stream)

    def _is_jsonl(self) -> bool:
        """By the name; by the first character where the name tells nothing."""
        suffixes = [suffix.lower() for suffix in Path(self.path).suffixes]
        if suffixes and suffixes[-1] == ".gz":
            suffixes.pop()
        if suffixes and suffixes[-1] == ".txt":
            return False
        if suffixes and suffixes[-1] in _JSONL_SUFFIXES:
            return True
        with open(self.path, "rb") as raw, self._decoded(raw) as stream:
            return self._read(stream, 4096).removeprefix(_BOM).lstrip()[:1] == b"{"

    def _decoded(self, raw: IO[bytes]) -> IO[bytes]:
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), BLOCK_BYTES) if self.compressed else raw

    def _read(self, stream: IO[bytes], size: int = -1, *, line: bool = False) -> bytes:
        try:
            return stream.readline() if line else stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path} is damaged gzip data: {error}") from error

    def _read_block(self, stream: IO[bytes]) -> bytes:
        if self.kind == "file":
            return self._read(stream)
        data = self._read(stream, BLOCK_BYTES)
        if data and not data.endswith(b"\n"):
            data += self._read(stream, line=True)
        if self.kind != "paragraph":
            return data
        lines = [data[data.rfind(b"\n", 0, -1) + 1 :]]
        while lines[-1].strip() and (more := self._read(stream, line=True)):  # the block ends where a paragraph does
            lines.append(more)
        return data + b"".join(lines[1:])


def open_corpus(paths: Sequence[str], txt_documents: TxtDocuments) -> list[CorpusFile]:
    """All input files, looked at before any work begins. Raises ValueError for one that is missing or no file."""
    if not paths:
        raise ValueError("--input names no file")
    return [CorpusFile(path, txt_documents) for path in paths]


def corpus_blocks(files: Sequence[CorpusFile]) -> Iterator[Block]:
    """The blocks of all files in order."""
    before = 0
    for file in files:
        yield from file.blocks(before)
        before += file.size


def records(block: Block, json_keys: Sequence[str]) -> Iterator[Record | BadRecord]:
    """The records of a block in order. Text files give their text under every key.

    jsonl and line: one record per line (a trailing carriage return is not text). paragraph: lines between blank lines.
    file: everything. A text without any character but white space is an empty document.
    """
    if block.kind == "jsonl":
        for line, raw in _lines(block):
            yield _json_record(block.path, line, raw, json_keys)
        return
    if block.kind == "line":
        units: Iterator[tuple[int, bytes]] = _lines(block)
    elif block.kind == "paragraph":
        units = _paragraphs(block)
    else:
        units = iter([(1, block.data)])
    for line, raw in units:
        if block.kind == "line" and not raw.strip():
            yield BadRecord(block.path, line, "blank line", "", raw)
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield BadRecord(block.path, line, "bad UTF-8", _where(error), raw)
            continue
        if text.strip():
            yield Record(line, (text,) * len(json_keys))
        else:
            yield BadRecord(block.path, line, "empty document", "", raw)


def _json_record(path: str, line: int, raw: bytes, json_keys: Sequence[str]) -> Record | BadRecord:
    def bad(reason: str, detail: str = "") -> BadRecord:
        return BadRecord(path, line, reason, detail, raw)

    if not raw.strip():
        return bad("blank line")
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return bad("bad UTF-8", _where(error))
    except (ValueError, RecursionError) as error:
        return bad("bad JSON", str(error))
    if not isinstance(value, dict):
        return bad("not an object", f"a {type(value).__name__}")
    texts = []
    for key in json_keys:
        text = value.get(key)
        if not isinstance(text, str) or not text.strip():
            return bad(*_no_text(value, key))
        texts.append(text)
    return Record(line, tuple(texts))


def _no_text(value: dict[str, Any], key: str) -> tuple[str, str]:
    if key not in value:
        return "missing key", repr(key)
    if value[key] is None:
        return "null", repr(key)
    if not isinstance(value[key], str):
        return "not a string", f"{key!r} is a {type(value[key]).__name__}"
    return "empty document", repr(key)


def _where(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at offset {error.start}"


def _lines(block: Block) -> Iterator[tuple[int, bytes]]:
    """Lines end at \\n only: other separators of Unicode are text."""
    lines = block.data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for number, raw in enumerate(lines, block.first_line):
        yield number, raw.removesuffix(b"\r")


def _paragraphs(block: Block) -> Iterator[tuple[int, bytes]]:
    begin, held = block.first_line, list[bytes]()
    for number, raw in _lines(block):
        if raw.strip():
            begin = begin if held else number
            held.append(raw)
        elif held:
            yield begin, b"\n".join(held)
            held = []
    if held:
        yield begin, b"\n".join(held)
