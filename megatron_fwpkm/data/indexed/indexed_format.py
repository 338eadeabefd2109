"""Megatron's .bin/.idx pair: written in a stream, published atomically, read and checked without torch.

Layout of the .idx (little endian): `MMIDIDX\\0\\0`, version u64 = 1, dtype code u8, number of sequences S u64, number
of document marks D + 1 u64, S int32 lengths (tokens), S int64 byte offsets into the .bin, D + 1 int64 document marks.
Here a document is always one sequence, as everywhere in GPT pretraining. The bytes equal those of
`megatron.core.datasets.indexed_dataset.IndexedDatasetBuilder`.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import json
import os
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .mapped_files import map_array

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16
}  # fmt: skip
_BLOCK = 1 << 20
_ESCAPED = "backslashreplace"
"""Names of files may be no Unicode; what UTF-8 cannot hold of them is then escaped just as JSON has it."""
SIDECAR_FORMAT = 1
"""Version of the sidecar's layout."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 below 65,500 ids, else int32: megatron.core's own rule."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def dataset_paths(prefix: str | Path) -> tuple[Path, Path, Path]:
    """The .bin, .idx and sidecar .json of a dataset prefix."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx"), Path(f"{prefix}.json")


class IndexedWriter:
    """Writes one dataset beside its final place and renames it there in `publish`; leaving the `with` block without
    that removes it, unless `keep` is set.

    Memory does not grow with the number of documents. The .idx is renamed last, so a dataset that can be opened is
    whole.
    """

    def __init__(
        self, prefix: str | Path, dtype: np.dtype[Any], *, overwrite: bool = False, resume: bool = False
    ) -> None:
        """With `resume`, what an earlier run left is kept for `restore`. Raises ValueError when the dataset exists and
        `overwrite` is off, when another process writes it, or the folder is not writable."""
        self.prefix = str(prefix)
        self.dtype = dtype
        self.tokens = 0
        self.documents = 0
        """Documents written so far."""
        self.keep = False
        self._digest = hashlib.sha256()
        self._finals = dataset_paths(prefix)
        self._partials = tuple(path.with_name(path.name + ".partial") for path in self._finals)
        self._lengths_path = self._finals[0].with_suffix(".lengths.partial")
        existing = [path for path in self._finals if path.exists()]
        if existing and not overwrite:
            raise ValueError(
                f"{existing[0]} already exists; give another --output-prefix, or use --overwrite to replace it"
            )
        folder = self._finals[0].parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._bin = open(self._partials[0], "ab+")
        except OSError as error:
            raise ValueError(f"cannot write to {folder} (--output-prefix): {error.strerror}") from error
        try:
            fcntl.flock(self._bin, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._bin.close()
            raise ValueError(
                f"another process is writing {self.prefix}; wait for it or give another --output-prefix"
            ) from error
        self._lengths = open(self._lengths_path, "ab+")
        if not resume:  # what a killed run left
            self._bin.truncate(0)
            self._lengths.truncate(0)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for path in () if self.keep else (*self._partials, self._lengths_path):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # what a full disk still refuses is not wanted any more
            self._bin.close()
        with suppress(OSError):
            self._lengths.close()

    def append(self, tokens: bytes, lengths: array[int] | np.ndarray) -> None:
        """Add documents: their tokens back to back in this dataset's dtype, and the number of tokens of each."""
        lengths = np.asarray(lengths, dtype=np.int32)
        assert int(lengths.sum(dtype=np.int64)) * self.dtype.itemsize == len(tokens)
        with naming(self._partials[0]):
            self._bin.write(tokens)
        with naming(self._lengths_path):
            self._lengths.write(lengths.tobytes())
        self._digest.update(tokens)
        self.documents += len(lengths)
        self.tokens += len(tokens) // self.dtype.itemsize

    def checkpoint(self) -> dict[str, int]:
        """Put all that was appended on disk; the result is for `restore`."""
        with naming(self._partials[0]):
            _flush(self._bin)
        with naming(self._lengths_path):
            _flush(self._lengths)
        return {"documents": self.documents, "tokens": self.tokens}

    def restore(self, state: dict[str, int]) -> None:
        """Go back to a `checkpoint` of an earlier run, of which the last bytes may have been torn.

        Raises:
            ValueError: less is there than the checkpoint tells.
        """
        self.documents, self.tokens = state["documents"], state["tokens"]
        for stream, size in ((self._bin, self.tokens * self.dtype.itemsize), (self._lengths, 4 * self.documents)):
            if os.fstat(stream.fileno()).st_size < size:
                raise ValueError(
                    f"{self.prefix}: the interrupted run's output is incomplete; start over with --overwrite"
                )
            stream.truncate(size)
        self._bin.seek(0)
        while data := self._bin.read(_BLOCK):
            self._digest.update(data)

    def document(self, number: int, lengths: np.ndarray) -> np.ndarray:
        """Tokens of a written document, `lengths` being those of all documents in front of it and its own."""
        self._bin.flush()
        begin = int(lengths[:number].sum(dtype=np.int64)) * self.dtype.itemsize
        size = int(lengths[number]) * self.dtype.itemsize
        return np.frombuffer(os.pread(self._bin.fileno(), size, begin), self.dtype)

    def lengths(self) -> np.ndarray:
        """Tokens of every document, int32, mapped from the file."""
        self._lengths.flush()
        if not self.documents:
            return np.zeros(0, np.int32)
        return np.memmap(self._lengths_path, dtype=np.int32, mode="r", shape=(self.documents,))

    def prepare(self, sidecar: dict[str, Any]) -> list[tuple[Path, Path]]:
        """Write the index and `sidecar` (with dtype, counts and digest added) and flush everything to disk. Returns the
        renames that publish the dataset, the index last."""
        bin_partial, idx_partial, json_partial = self._partials
        self.checkpoint()
        with naming(idx_partial), open(idx_partial, "wb") as stream:
            write_index(stream, self.dtype, self.lengths())
            _flush(stream)
        described = sidecar | {
            "format": SIDECAR_FORMAT,
            "dtype": self.dtype.name,
            "documents": self.documents,
            "tokens": self.tokens,
            "bin_sha256": self._digest.hexdigest(),
        }
        with naming(json_partial), open(json_partial, "w", encoding="utf-8", errors=_ESCAPED) as text:
            json.dump(described, text, indent=2, ensure_ascii=False, sort_keys=True)
            text.write("\n")
            _flush(text)
        bin_final, idx_final, json_final = self._finals
        return [(bin_partial, bin_final), (json_partial, json_final), (idx_partial, idx_final)]

    def publish(self, sidecar: dict[str, Any]) -> None:
        """`prepare`, and rename into place."""
        rename_all(self.prepare(sidecar))


def rename_all(renames: list[tuple[Path, Path]]) -> None:
    """Publish what `IndexedWriter.prepare` made; done again after a kill, it finishes what was begun."""
    for partial, final in renames:  # when overwriting: never an old index over new tokens
        if final.suffix == ".idx" and partial.exists():
            final.unlink(missing_ok=True)
    for partial, final in renames:
        if partial.exists():
            os.replace(partial, final)
        if final.suffix == ".bin":
            final.with_suffix(".lengths.partial").unlink(missing_ok=True)
    for folder in {final.parent for _, final in renames}:
        _flush_folder(folder)


def write_index(stream: Any, dtype: np.dtype[Any], lengths: np.ndarray) -> None:
    """The whole .idx of documents with `lengths` tokens, block by block: memory does not grow with their number."""
    code = next(code for code, scalar in _CODES.items() if np.dtype(scalar) == dtype)
    documents = len(lengths)
    stream.write(_HEADER.pack(_MAGIC, 1, code, documents, documents + 1))
    for begin in range(0, documents, _BLOCK):
        stream.write(np.asarray(lengths[begin : begin + _BLOCK], dtype=np.int32).tobytes())
    offset = 0
    for begin in range(0, documents, _BLOCK):
        pointers, offset = byte_offsets(lengths[begin : begin + _BLOCK], dtype.itemsize, offset)
        stream.write(pointers.tobytes())
    for begin in range(0, documents + 1, _BLOCK):
        stream.write(np.arange(begin, min(begin + _BLOCK, documents + 1), dtype=np.int64).tobytes())


def byte_offsets(lengths: np.ndarray, itemsize: int, offset: int) -> tuple[np.ndarray, int]:
    """Where documents of `lengths` tokens begin in a .bin, int64, the first at `offset`; and where the last ends."""
    ends = offset + np.cumsum(lengths, dtype=np.int64) * itemsize
    return np.concatenate(([offset], ends[:-1])).astype(np.int64), int(ends[-1])


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing, such as a full disk, come without the name of the file; this adds it, and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "; free space there, or give an --output-prefix on another disk" if full else ""
        raise OSError(error.errno, f"{error.strerror}{advice}", str(path)) from error


def _flush(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset on disk holds."""

    prefix: str
    dtype: np.dtype[Any]
    lengths: np.ndarray
    """Tokens per document, int32, mapped from the file."""
    sidecar: dict[str, Any] | None
    """The description that tools/preprocess_data.py wrote, None for a dataset of another tool."""
    fingerprint: str
    """Changes whenever the tokens do."""

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    def tokens_between(self, begin: int, end: int) -> int:
        """Tokens of the documents `begin` to `end`, exclusive."""
        return int(self.lengths[begin:end].sum(dtype=np.int64))


def read_dataset_info(prefix: str | Path) -> DatasetInfo:
    """Open and check a dataset.

    Raises:
        ValueError: files missing (names near ones), a foreign, multimodal or truncated index, documents of several
        sequences, or a .bin of another size than the index tells.
    """
    bin_path, idx_path, json_path = dataset_paths(prefix)
    missing = [path for path in (bin_path, idx_path) if not path.is_file()]
    if missing:
        half = "; a dataset needs both its .bin and its .idx: copy the missing one, or make the dataset again"
        hint = half if len(missing) == 1 else _near_names(Path(prefix))
        raise ValueError(f"dataset {prefix}: {missing[0]} does not exist{hint}")
    size = idx_path.stat().st_size
    with open(idx_path, "rb") as stream:
        head = stream.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise ValueError(f"{idx_path} is not the index of a Megatron dataset; make one with tools/preprocess_data.py")
    _, version, code, sequences, marks = _HEADER.unpack(head)
    if version != 1 or code not in _CODES:
        raise ValueError(
            f"{idx_path} has version {version} and dtype code {code}; only version 1 and codes 1 to 8 are supported"
        )
    _check_layout(idx_path, sequences, marks)
    dtype = np.dtype(_CODES[code])
    lengths = np.zeros(0, np.int32)
    expected = 0
    if sequences:
        lengths = map_array(idx_path, np.int32, _HEADER.size, sequences)
        last = map_array(idx_path, np.uint8, _HEADER.size + 4 * sequences + 8 * (sequences - 1), 8)
        expected = int.from_bytes(last.tobytes(), "little", signed=True) + int(lengths[-1]) * dtype.itemsize
    actual = bin_path.stat().st_size
    if actual != expected:
        raise ValueError(f"{bin_path} has {actual} bytes, but its index expects {expected}; prepare the corpus again")
    sidecar = _read_sidecar(json_path)
    facts: list[Any] = [size, actual]
    if sidecar is not None:
        facts.append(sidecar["bin_sha256"])
    else:
        facts += [idx_path.stat().st_mtime_ns, bin_path.stat().st_mtime_ns]
    return DatasetInfo(str(prefix), dtype, lengths, sidecar, hashlib.sha256(repr(facts).encode()).hexdigest())


def _check_layout(idx_path: Path, sequences: int, marks: int) -> None:
    """Raises ValueError where an index is not that of text in documents of one sequence each."""
    size, wanted = idx_path.stat().st_size, _HEADER.size + 12 * sequences + 8 * marks
    if sequences and size == wanted + sequences:
        raise ValueError(
            f"{idx_path} is a multimodal index, with a mode for each of its {sequences} sequences; only text is "
            f"supported, so prepare the text alone"
        )
    if size != wanted:
        raise ValueError(
            f"{idx_path} is truncated or overwritten: it has {size} bytes, but {sequences} sequences and {marks} "
            f"document marks need {wanted}; prepare the corpus again"
        )
    if marks != sequences + 1:
        raise ValueError(
            f"{idx_path} has {sequences} sequences in {marks - 1} documents, but each document must be one sequence; "
            f"prepare the corpus without --split-sentences, or training would shuffle its sentences one by one"
        )


def _read_sidecar(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        if sidecar["format"] != SIDECAR_FORMAT:
            raise ValueError(f"{path} has format {sidecar['format']}; only format {SIDECAR_FORMAT} is supported")
        made = sidecar["tokenizer"]
        texts = made["identity"], made["type"], sidecar["bin_sha256"]
        if not isinstance(made["vocab_size"], int) or not all(isinstance(text, str) for text in texts):
            raise TypeError
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a dataset description written by tools/preprocess_data.py") from error
    return sidecar


def _near_names(prefix: Path) -> str:
    if prefix.suffix in (".bin", ".idx"):
        return f"; give the prefix without {prefix.suffix}"
    if not prefix.parent.is_dir():
        return f"; the folder {prefix.parent} does not exist"
    names = sorted(path.with_suffix("") for path in prefix.parent.glob("*.idx"))
    near = [str(name) for name in names if name.name.startswith(prefix.name)]
    near = near or difflib.get_close_matches(str(prefix), map(str, names), cutoff=0.0)
    return f"; did you mean {' or '.join(near[:3])}?" if near else "; make it with tools/preprocess_data.py"
