"""Input files cut into blocks of whole records. Free of torch.

One process cuts blocks (compressed text can only be read from its start); any process turns a block into records
(`records`), reading uncompressed text itself. A file is read once, in order, and its SHA-256 is taken on the way.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from .compression import SUFFIXES, DecodedStream, HashingReader, compression_of, needed_package
from .json_arrays import array_blocks
from .json_keys import alternatives
from .records import Block, Cursor, Kind, TxtDocuments

BLOCK_BYTES = 1 << 20
"""Bytes after which a block ends at the next whole record."""
PARQUET_ROWS = 256
"""Rows of a parquet file per block."""
STDIN = "-"
_BOM = b"\xef\xbb\xbf"
_PARQUET_MAGIC = b"PAR1"
_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_BY_LINES: tuple[Kind, ...] = ("jsonl", "line")


class CorpusFile:
    """One input file, its compression and kind told by content. Raises ValueError or OSError when it cannot be read at
    all. `begin` and `end` limit the bytes at which records may begin; only plain files of lines are ever cut."""

    def __init__(self, path: str, txt_documents: TxtDocuments) -> None:
        self.path = path
        self.sha256 = ""
        self._stdin: io.BufferedReader[HashingReader] | None = None
        self._txt_documents = txt_documents
        status = None if path == STDIN else os.stat(path)
        self.size = status.st_size if status else 0
        self.modified = status.st_mtime_ns if status else 0
        self.begin, self.end = 0, self.size
        if status is None:
            self._stdin = io.BufferedReader(HashingReader(sys.stdin.buffer), BLOCK_BYTES)
            head = self._stdin.peek(BLOCK_BYTES)  # all of it, or the whole input
            self.compression = compression_of(head)
        else:
            with open(path, "rb") as raw:
                head = raw.read(8)
            self.compression = compression_of(head)
        if self.compression:
            head = self._text_head()
        if status is None and head.startswith(_PARQUET_MAGIC):
            raise ValueError("--input - is a parquet file, which cannot be read from a pipe; give its path")
        self.kind: Kind = "parquet" if head.startswith(_PARQUET_MAGIC) else self._text_kind()

    @property
    def splittable(self) -> bool:
        """Whether the file can be cut at any line."""
        return not self.compression and self.kind in _BY_LINES and self._stdin is None

    @cached_property
    def lines_before(self) -> int:
        """Lines in front of `begin`; read only when asked for, because it takes a pass over them."""
        count, left = 0, self._start()
        with open(self.path, "rb") as raw:
            while left and (data := raw.read(min(left, BLOCK_BYTES))):
                count, left = count + data.count(b"\n"), left - len(data)
        return count

    def description(self) -> dict[str, Any]:
        """What the sidecar of a dataset tells of this file, complete when its blocks have been read."""
        told = {
            "path": self.path, "bytes": self.size, "kind": self.kind, "compression": self.compression or "none"
        }  # fmt: skip
        whole = (self.begin, self.end) == (0, self.size)
        return told | ({"sha256": self.sha256} if whole else {"begin": self.begin, "end": self.end})

    def check_unchanged(self) -> None:
        """Raises ValueError when the file is another than at the start of the run."""
        if self._stdin is not None:
            return
        try:
            status = os.stat(self.path)
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} was moved or deleted during the run; nothing was written") from error
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
            raise ValueError(f"{self.path} changed during the run; nothing was written; start again")

    def blocks(
        self, keys: Sequence[str], before: int = 0, number: int = 0, start: Cursor | None = None
    ) -> Iterator[Block]:
        """The file's blocks in order from `start` on; at most one of about BLOCK_BYTES (or one record) is in memory.
        `keys` are the columns wanted of a parquet file, `before` the bytes of the input in front of this file, `number`
        its place among them.

        Raises:
            ValueError: compressed data that is damaged or cut off; a parquet file without the columns.
        """
        start = start or Cursor()
        if self.kind == "parquet":
            yield from self._parquet_blocks(keys, before, number, start)
            return
        origin = self._start()
        with ExitStack() as stack:
            if self._stdin is None:
                raw = stack.enter_context(open(self.path, "rb", buffering=0))
                raw.seek(origin)
                buffered = io.BufferedReader(HashingReader(raw), BLOCK_BYTES)
            else:
                buffered = self._stdin
            hashing = buffered.raw
            stream = DecodedStream(buffered, self.compression, self.path, BLOCK_BYTES)
            if self.kind == "array":
                for line, data, end, broken in array_blocks(stream, start, BLOCK_BYTES):
                    consumed = before + min(hashing.consumed, self.size)
                    yield Block(self.path, "array", line, data, consumed, file_number=number, end=end, broken=broken)
            else:
                for line, data, position, end in self._text_blocks(stream, start):
                    offset = origin + position if self.splittable else -1
                    consumed = before - self.begin + min(origin + hashing.consumed, self.size)
                    yield Block(
                        self.path, self.kind, line, data, consumed, offset, len(data), file_number=number, end=end
                    )  # fmt: skip
            self.sha256 = hashing.sha256

    def _text_blocks(self, stream: DecodedStream, start: Cursor) -> Iterator[tuple[int, bytes, int, Cursor]]:
        """First line, text, position of the text, and place behind it."""
        stream.skip(start.position)
        line, position, first = start.line, start.position, start == Cursor()
        limit = self.end - self._start() if self.splittable and self.end < self.size else None
        while limit is None or position < limit:
            data = self._read_block(stream, BLOCK_BYTES if limit is None else min(BLOCK_BYTES, limit - position))
            size = len(data)
            if first and not self.begin and data.startswith(_BOM):
                position, size, data = position + 3, size - 3, data[3:]
            if not data and not (first and self.kind == "file"):  # an empty file is an empty document
                return
            after = line + max(1, data.count(b"\n"))
            yield line, data, position, Cursor(position + size, after)
            line, position, first = after, position + size, False
            if self.kind == "file":
                return

    def _parquet_blocks(self, keys: Sequence[str], before: int, number: int, start: Cursor) -> Iterator[Block]:
        parquet = needed_package("pyarrow.parquet", f"reading the parquet file {self.path}")
        try:
            opened = parquet.ParquetFile(self._decompressed() if self.compression else self.path)
            columns = self._columns(opened.schema_arrow.names, keys)
            row, total = 0, max(1, opened.metadata.num_rows)
            for batch in opened.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                end = row + batch.num_rows
                if end > start.position:
                    rows = tuple(_rows(batch)[max(0, start.position - row) :])
                    consumed = before + self.size * end // total
                    yield Block(
                        self.path, "parquet", end - len(rows) + 1, b"", consumed, rows=rows, file_number=number,
                        end=Cursor(end, end + 1),
                    )  # fmt: skip
                row = end
        except (OSError, needed_package("pyarrow", "parquet").ArrowInvalid) as error:
            raise ValueError(f"{self.path} is a damaged parquet file: {error}") from error
        with open(self.path, "rb") as raw:
            self.sha256 = hashlib.file_digest(raw, "sha256").hexdigest()

    def _columns(self, there: Sequence[str], keys: Sequence[str]) -> list[str]:
        """Those of the columns of a parquet file that hold the keys. Raises ValueError for a key without any."""
        wanted = set[str]()
        for key in keys:
            columns = [name if name in there else name.split(".")[0] for name in alternatives(key)]
            if not set(columns).intersection(there):
                raise ValueError(
                    f"{self.path} has no column {' or '.join(columns)} (--json-keys); its columns are "
                    f"{', '.join(there)}"
                )
            wanted.update(set(columns).intersection(there))
        return sorted(wanted)

    def _decompressed(self) -> IO[bytes]:
        """The content in a temporary file: parquet is read from its end."""
        whole = tempfile.TemporaryFile()  # its reader closes it
        with open(self.path, "rb") as raw:
            stream = DecodedStream(raw, self.compression, self.path, BLOCK_BYTES)
            while data := stream.read(BLOCK_BYTES):
                whole.write(data)
        whole.seek(0)
        return whole

    @cached_property
    def _first_record(self) -> int:
        with open(self.path, "rb") as raw:
            raw.seek(self.begin - 1)
            raw.readline()
            return raw.tell()

    def _start(self) -> int:
        """Where the first record of this part of the file begins."""
        return min(self._first_record, self.size) if self.begin else 0

    def _text_kind(self) -> Kind:
        """By the name; by the first characters where the name tells nothing."""
        suffixes = [suffix.lower() for suffix in Path(self.path).suffixes]
        if suffixes and suffixes[-1] in SUFFIXES:
            suffixes.pop()
        if suffixes and suffixes[-1] == ".txt":
            return self._txt_documents
        if suffixes and suffixes[-1] in _JSONL_SUFFIXES:
            return "jsonl"
        head = self._text_head()
        if head[:1] == b"[" and head[1:].lstrip()[:1] in (b"{", b"]"):
            return "array"
        if head[:1] == b"{" or (suffixes and suffixes[-1] == ".json"):
            return "jsonl"
        return self._txt_documents

    def _text_head(self) -> bytes:
        with open(self.path, "rb") if self._stdin is None else io.BytesIO(self._stdin.peek(BLOCK_BYTES)) as raw:
            return DecodedStream(raw, self.compression, self.path, 4096).read(4096).removeprefix(_BOM).lstrip()

    def _read_block(self, stream: DecodedStream, size: int) -> bytes:
        if self.kind == "file":
            return stream.read()
        data = stream.read(size)
        if data and not data.endswith(b"\n"):
            data += stream.readline()
        if self.kind != "paragraph":
            return data
        lines = [data[data.rfind(b"\n", 0, -1) + 1 :]]
        while lines[-1].strip() and (more := stream.readline()):  # the block ends where a paragraph does
            lines.append(more)
        return data + b"".join(lines[1:])


def _rows(batch: Any) -> list[dict[str, Any]]:
    """Rows of a record batch; strings that are not UTF-8 as bytes."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        return [{name: _value(batch[name][number]) for name in batch.schema.names} for number in range(len(batch))]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if hasattr(scalar, "as_buffer"):
            return scalar.as_buffer().to_pybytes()
        return {name: _value(inner) for name, inner in scalar.items()} if hasattr(scalar, "items") else None


def open_corpus(
    paths: Sequence[str], txt_documents: TxtDocuments, *, shard_id: int = 0, num_shards: int = 1
) -> list[CorpusFile]:
    """All input files, looked at before any work begins: files, patterns, folders (all that is in them, but hidden
    files) and "-", the standard input. With shards, the files or parts of files of one shard: equal shares of bytes,
    in order, so that the shards one after another are the whole.

    Raises:
        ValueError: an input that is missing, empty of files, no file, not readable, or named twice.
    """
    try:
        files = [CorpusFile(path, txt_documents) for path in _expanded(paths)]
    except PermissionError as error:
        raise ValueError(
            f"--input {error.filename} cannot be read: permission denied; change its permissions, or leave it out"
        ) from error
    return shard_of(files, shard_id, num_shards)


def shard_of(files: list[CorpusFile], shard_id: int, num_shards: int) -> list[CorpusFile]:
    """Those of all input files, or parts of them, that one shard reads. Raises ValueError for a pipe in parts."""
    if num_shards == 1:
        return files
    if any(file.path == STDIN for file in files):
        raise ValueError("--input - cannot be split into shards; write it to a file first")
    total = sum(file.size for file in files)
    low, high = total * shard_id // num_shards, total * (shard_id + 1) // num_shards
    mine, before = list[CorpusFile](), 0
    for file in files:
        if file.splittable:
            file.begin, file.end = max(0, low - before), min(file.size, high - before)
            if file.begin < file.end:
                mine.append(file)
        elif low <= min(before, max(total - 1, 0)) < max(high, 1):
            mine.append(file)
        before += file.size
    return mine


def corpus_identity(files: Sequence[CorpusFile]) -> str:
    """All input files in words, other words where a name or a size differs. The shards of a run have it in common."""
    names = b"\n".join(os.fsencode(f"{os.path.basename(file.path)} {file.size}") for file in files)
    total = sum(file.size for file in files)
    return f"{len(files):,} files, {total:,} bytes, {hashlib.sha256(names).hexdigest()[:12]}"


def _expanded(paths: Sequence[str]) -> list[str]:
    if not paths:
        raise ValueError("--input names no file")
    found = [name for path in paths for name in _files_of(path)]
    seen = set[str]()
    for path in found:
        if (real := os.path.realpath(path) if path != STDIN else path) in seen:
            raise ValueError(f"--input names {path} twice; give each file once (weights belong in --data-path)")
        seen.add(real)
    return found


def _files_of(path: str) -> list[str]:
    if path == STDIN or Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        walk = os.walk(path, onerror=_raise, followlinks=True)  # by default it leaves out what it cannot list
        inside = (Path(folder) / name for folder, _, names in walk for name in names)
        if names := sorted(str(at) for at in inside if not _hidden(at.relative_to(path))):
            return names
        raise ValueError(f"--input {path} is a folder that contains no files")
    if Path(path).exists():
        raise ValueError(f"--input {path} is neither a file nor a folder; use - for standard input")
    if glob.has_magic(path):
        if names := sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file()):
            return names
        raise ValueError(f"--input {path} matches no file")
    raise ValueError(f"--input {path} does not exist; give an existing file or folder, or a pattern that matches files")


def _raise(error: OSError) -> None:
    raise error


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def corpus_blocks(
    files: Sequence[CorpusFile], keys: Sequence[str] = ("text",), start: tuple[int, Cursor] = (0, Cursor())
) -> Iterator[Block]:
    """The blocks of all files in order, from a place in the file with number `start[0]` on."""
    before = 0
    for number, file in enumerate(files):
        if number >= start[0]:
            yield from file.blocks(keys, before, number, start[1] if number == start[0] else None)
        before += file.end - file.begin
