"""Blocks to documents: every record is text or named as bad. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .json_keys import alternatives

TxtDocuments = Literal["file", "paragraph", "line"]
Kind = Literal["jsonl", "array", "parquet", "file", "paragraph", "line"]
BadBytes = Literal["reject", "replace", "drop"]

try:
    import orjson
except ImportError:  # an extra: the same records without it
    orjson = None  # type: ignore[assignment]
_SCAN = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_DEEPEST = 500
"""Levels of a value up to which orjson and json surely both go; each gives up at about 1,000."""
_ERRORS = {"reject": "strict", "replace": "replace", "drop": "ignore"}


@dataclass(frozen=True)
class Cursor:
    """A place between two records of one file: bytes (of the decompressed content) or records passed, and the number
    of the line or record that comes next, from 1."""

    position: int = 0
    line: int = 1


@dataclass(frozen=True)
class Block:
    """Whole records of one file.

    Attributes:
        path: the file.
        kind: how `data` is read: JSON Lines also for arrays; parquet for `rows`.
        first_line: number of the first line or record.
        data: the text; None where it is to be read from the file at `offset`.
        offset, size: where `data` lies in an uncompressed file; offset -1 where it lies nowhere.
        rows: records of a parquet file.
        consumed: bytes of all input, as it lies on disk, that have been read when this block is done.
        file_number, end: the place behind this block.
        broken: what is wrong where a JSON array breaks; `data` begins there.
        sample_below: documents that draw a number below this one are wanted for --verify.
    """

    path: str
    kind: Kind
    first_line: int
    data: bytes | None
    consumed: int
    offset: int = -1
    size: int = 0
    rows: tuple[dict[str, Any], ...] = ()
    file_number: int = 0
    end: Cursor = Cursor()
    broken: str = ""
    sample_below: float = float("inf")

    def lean(self) -> Block:
        """The block without what any process can read from the file itself."""
        return replace(self, data=None) if self.offset >= 0 else self

    def content(self) -> bytes:
        """`data`, read now if need be. Raises ValueError when the file has become shorter."""
        if self.data is not None:
            return self.data
        with open(self.path, "rb") as stream:
            stream.seek(self.offset)
            data = stream.read(self.size)
        if len(data) < self.size:
            raise ValueError(f"{self.path} became shorter while it was being read; start again when it is complete")
        return data


@dataclass(frozen=True)
class Record:
    """A document: its text under each of the wanted keys. `is_unicode`: known to hold no lone surrogate."""

    line: int
    texts: tuple[str, ...]
    is_unicode: bool = False


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


def records(block: Block, json_keys: Sequence[str], bad_bytes: BadBytes = "reject") -> Iterator[Record | BadRecord]:
    """The records of a block in order. Text files give their text under every key.

    jsonl and line: one record per line (a trailing carriage return is not text). paragraph: lines between blank lines.
    file: everything. A text without any character but white space is an empty document. A key with dots is looked up
    as it stands first, then level by level; of `text|body` the first key counts that holds more than null or white
    space. `bad_bytes`: bytes that are not UTF-8, and NUL (of binary files, or of blocks that a full disk
    left empty), make a bad record, become U+FFFD, or are left out.
    """
    keys = tuple(map(alternatives, json_keys))
    if block.kind == "parquet":
        for line, row in enumerate(block.rows, block.first_line):
            yield _object_record(block.path, line, row, keys, b"", bad_bytes)
        return
    if block.broken:
        yield BadRecord(block.path, block.first_line, "broken array", block.broken, block.content())
        return
    if block.kind in ("jsonl", "array"):
        for line, raw in _lines(block):
            yield _good_record(line, raw, keys) or _json_record(block.path, line, raw, keys, bad_bytes)
        return
    for line, raw in _texts(block):
        if block.kind == "line" and not raw.strip():
            yield BadRecord(block.path, line, "blank line", "", raw)
            continue
        try:
            yield Record(line, (_text(raw, bad_bytes),) * len(json_keys), is_unicode=True)
        except _NoText as problem:
            yield BadRecord(block.path, line, problem.reason, problem.detail, raw)


def _text(raw: bytes, bad_bytes: BadBytes) -> str:
    """The document that these bytes are. Raises _NoText where they are none."""
    try:
        text = raw.decode("utf-8", _ERRORS[bad_bytes])
    except UnicodeDecodeError as error:
        raise _NoText("bad UTF-8", _where(error)) from error
    if "\0" in text:
        text = _without_nul(text, bad_bytes)
    if not text.strip():
        raise _NoText("empty document", "")
    return text


def _good_record(line: int, raw: bytes, keys: Sequence[tuple[str, ...]]) -> Record | None:
    """The record of a line that both orjson and json take for the same document; None where `_json_record` must say."""
    if orjson is None:
        return None
    try:
        value = orjson.loads(raw)
        if not isinstance(value, dict):
            return None
        texts = tuple([value[names[0]] if len(names) == 1 else _first(value, names) for names in keys])
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    around = len(raw)  # no fewer bytes than what is not these texts
    for text in texts:
        if not isinstance(text, str) or not text or text.isspace() or "\0" in text:
            return None
        around -= len(text)
    if around > 2 * _DEEPEST and raw.count(b"[") + raw.count(b"{") > _DEEPEST:
        return None
    return Record(line, texts, is_unicode=True)


def _first(value: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first value that is not null or white space; LookupError where `_object_record` must say."""
    for name in names:
        if name not in value and "." in name:
            break
        text = value.get(name)
        if text is not None and not (isinstance(text, str) and (not text or text.isspace())):
            return text
    raise LookupError


def _json_record(
    path: str, line: int, raw: bytes, keys: Sequence[tuple[str, ...]], bad_bytes: BadBytes
) -> Record | BadRecord:
    if not raw.strip():
        return BadRecord(path, line, "blank line", "", raw)
    try:
        value = _parsed(raw.decode("utf-8", _ERRORS[bad_bytes]))
    except UnicodeDecodeError as error:
        return BadRecord(path, line, "bad UTF-8", _where(error), raw)
    except (ValueError, RecursionError) as error:
        return BadRecord(path, line, "bad JSON", str(error), raw)
    return _object_record(path, line, value, keys, raw, bad_bytes)


def _parsed(text: str) -> Any:
    """The JSON value that a line is, as json.loads has it, whose checks of every call take as long as a short line."""
    try:
        value, end = _SCAN(text, 0)
    except StopIteration:
        return json.loads(text)
    return value if end == len(text) else json.loads(text)


def _object_record(
    path: str, line: int, value: Any, keys: Sequence[tuple[str, ...]], raw: bytes, bad_bytes: BadBytes
) -> Record | BadRecord:
    if not isinstance(value, dict):
        return BadRecord(path, line, "not an object", f"type {type(value).__name__}", raw)
    texts = list[str]()
    for names in keys:
        try:
            texts.append(_text_under(value, names, bad_bytes))
        except _NoText as problem:
            whole = raw or json.dumps(value, default=str).encode()
            return BadRecord(path, line, problem.reason, problem.detail, problem.raw or whole)
    return Record(line, tuple(texts))


class _NoText(Exception):
    def __init__(self, reason: str, detail: str, raw: bytes = b"") -> None:
        super().__init__(reason)
        self.reason, self.detail, self.raw = reason, detail, raw


def _text_under(value: dict[str, Any], names: tuple[str, ...], bad_bytes: BadBytes) -> str:
    """The text of the first key that has one. Raises _NoText where none has, or another value stands there first."""
    problem = _NoText("missing key", " | ".join(map(repr, names)))
    for key in names:
        found, text = (True, value[key]) if key in value else _look_up(value, key)
        if not found:
            continue
        if isinstance(text, bytes):  # of parquet
            try:
                text = text.decode("utf-8", _ERRORS[bad_bytes])
            except UnicodeDecodeError as error:
                raise _NoText("bad UTF-8", f"{key!r}, {_where(error)}", text) from error
        if text is not None and not isinstance(text, str):
            raise _NoText("not a string", f"{key!r} has type {type(text).__name__}")
        if text and "\0" in text:
            text = _without_nul(text, bad_bytes, f"{key!r}, ")
        if text and not text.isspace():
            return text
        problem = _NoText("null" if text is None else "empty document", repr(key))
    raise problem


def _without_nul(text: str, bad_bytes: BadBytes, where: str = "") -> str:
    """A text that has NULs with something else for them. Raises _NoText where they make a record bad."""
    if bad_bytes == "reject":
        raise _NoText("NUL", f"{where}character {text.index(chr(0))}; is this a binary file?")
    return text.replace("\0", "\ufffd" if bad_bytes == "replace" else "")


def _look_up(value: dict[str, Any], key: str) -> tuple[bool, Any]:
    """Whether a key of several levels is there, and what it holds."""
    at: Any = value
    for part in key.split("."):
        if not isinstance(at, dict) or part not in at:
            return False, None
        at = at[part]
    return True, at


def _where(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at offset {error.start}"


def _texts(block: Block) -> Iterator[tuple[int, bytes]]:
    if block.kind == "line":
        return _lines(block)
    return _paragraphs(block) if block.kind == "paragraph" else iter([(1, block.content())])


def _lines(block: Block) -> Iterator[tuple[int, bytes]]:
    """Lines end at \\n only: other separators of Unicode are text."""
    lines = block.content().split(b"\n")
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
