"""Blocks of text to tokens, in this process or in several, in the order of the input. Free of torch."""

from __future__ import annotations

import multiprocessing
import re
import signal
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np

from ...config import DataConfig
from ...processes.freed_memory import free_large_tables
from ...processes.parent import end_with_parent, shielded
from ..corpus.records import BadBytes, BadRecord, Block, Cursor, Record, records
from ..encoders import Accelerator
from ..encoders.acceleration import DocumentsEncoder, build_encoder, choose_accelerator
from ..indexed.indexed_format import token_dtype
from ..tokenizers import Tokenizer, build_tokenizer
from .document_sample import SampledDocument, draw_documents
from .preprocess_options import ControlTokens

_LONGEST = 2**31 - 1
"""Tokens of a document: an index holds lengths in 32 bits."""


@dataclass(frozen=True)
class EncodingOptions:
    """All that decides the tokens of a block."""

    data: DataConfig
    json_keys: tuple[str, ...]
    append_eod: bool
    stop_at_bad: bool
    prepend_bos: bool = False
    control_tokens: ControlTokens = "text"
    bad_bytes: BadBytes = "reject"
    blend_keys: bool = False
    accelerator: Accelerator = "none"
    """What `choose_accelerator` is asked for."""
    sample: int = 0
    """Documents to keep for --verify: a block keeps at most so many."""


@dataclass(frozen=True)
class EncodedBlock:
    """Tokens of a block: for each dataset the documents back to back, and their lengths in tokens (BOS and EOD
    included)."""

    consumed: int
    tokens: tuple[bytes, ...]
    lengths: tuple[array[int], ...]
    text_bytes: tuple[int, ...]
    bad: tuple[BadRecord, ...]
    file_number: int = 0
    end: Cursor = Cursor()
    sample: tuple[SampledDocument, ...] = ()
    """Some documents for --verify, numbered within the block."""


class BlockEncoder:
    """Encodes blocks with one tokenizer and one way of encoding, `build_encoder`'s."""

    def __init__(self, options: EncodingOptions, tokenizer: Tokenizer, encode: DocumentsEncoder) -> None:
        self.options = options
        self.tokenizer = tokenizer
        self.dtype = token_dtype(self.tokenizer.vocab_size)
        self._encode = encode
        self._begin = self._bytes([self.tokenizer.bos or 0] if options.prepend_bos else [])
        self._end = self._bytes([self.tokenizer.eod] if options.append_eod else [])
        self._control_ids = self.tokenizer.control_tokens()
        control = sorted(self._control_ids, key=len, reverse=True)
        wanted = control and options.control_tokens != "text"
        self._control = re.compile("(" + "|".join(map(re.escape, control)) + ")") if wanted else None
        self._any_text = self._control is None and tokenizer.kind != "NullTokenizer"

    def encode(self, block: Block) -> EncodedBlock:
        """The block's good records as tokens, the others as they are; with `stop_at_bad` nothing behind the first bad
        one."""
        options = self.options
        datasets = 1 if options.blend_keys else len(options.json_keys)
        good, bad = self._checked(block)
        encoded = self._all_documents(good)
        parts: list[list[bytes]] = [[] for _ in range(datasets)]
        lengths = tuple(array("i") for _ in range(datasets))
        text_bytes = [0] * datasets
        texts: list[list[str]] = [[] for _ in range(datasets)]
        around = len(self._begin + self._end)
        for record, documents in zip(good, encoded, strict=True):
            if not all(documents) or max(map(len, documents)) + around > self.dtype.itemsize * _LONGEST:
                raw = "\n".join(record.texts).encode("utf-8")
                empty, long = ("empty document", "no tokens"), ("too long", f"more than {_LONGEST:,} tokens")
                bad.append(BadRecord(block.path, record.line, *(long if all(documents) else empty), raw))
                continue
            for key, (document, text) in enumerate(zip(documents, record.texts, strict=True)):
                slot = 0 if options.blend_keys else key
                parts[slot] += self._begin, document, self._end
                lengths[slot].append((len(document) + around) // self.dtype.itemsize)
                text_bytes[slot] += len(text) if text.isascii() else len(text.encode("utf-8"))
                if options.sample:
                    texts[slot].append(text)
        bad.sort(key=lambda record: record.line)
        return EncodedBlock(
            block.consumed,
            tuple(b"".join(documents) for documents in parts),
            lengths,
            tuple(text_bytes),
            tuple(bad[:1] if options.stop_at_bad else bad),
            block.file_number,
            block.end,
            draw_documents(block, texts, options.sample) if options.sample else (),
        )

    def document(self, text: str) -> bytes:
        """Tokens of one document by the plain tokenizer: what every way of encoding must give."""
        ids = self._parsed(text) if self._control is not None else self.tokenizer.encode(text)
        return self._begin + self._bytes(ids) + self._end

    def _checked(self, block: Block) -> tuple[list[Record], list[BadRecord]]:
        good, bad = list[Record](), list[BadRecord]()
        for record in records(block, self.options.json_keys, self.options.bad_bytes):
            if isinstance(record, Record):
                problem = self._problem(record)
                if problem is None:
                    good.append(record)
                    continue
                raw = "\n".join(record.texts).encode("utf-8", "surrogatepass")
                record = BadRecord(block.path, record.line, *problem, raw)
            bad.append(record)
            if self.options.stop_at_bad:
                break
        return good, bad

    def _problem(self, record: Record) -> tuple[str, str] | None:
        if self._any_text and record.is_unicode:
            return None
        for text in record.texts:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                where = f"lone surrogate at character {error.start}: not valid Unicode"
                return "cannot be encoded", where
            if self._control is not None and self.options.control_tokens == "fail":
                if found := self._control.search(text):
                    return "control token", f"{found[0]} at character {found.start()}"
            if self.tokenizer.kind == "NullTokenizer":
                try:
                    self.tokenizer.encode(text)
                except ValueError as error:
                    return "cannot be encoded", str(error)
        return None

    def _all_documents(self, good: list[Record]) -> list[tuple[bytes, ...]]:
        keys = len(self.options.json_keys)
        texts = [text for record in good for text in record.texts]
        if self._control is not None and self.options.control_tokens == "parse":
            flat = [self._bytes(self._parsed(text)) for text in texts]
        else:
            flat = self._encode(texts)
        return list(zip(*[iter(flat)] * keys, strict=True))

    def _parsed(self, text: str) -> list[int]:
        """Ids where a literal control token is that token; the text between two is encoded as one of its own."""
        if self.options.control_tokens != "parse":
            return self.tokenizer.encode(text)
        assert self._control is not None
        ids = list[int]()
        for number, part in enumerate(self._control.split(text)):
            if part:
                ids += [self._control_ids[part]] if number % 2 else self.tokenizer.encode(part)
        return ids

    def _bytes(self, ids: list[int]) -> bytes:
        return np.array(ids, dtype=self.dtype).tobytes()


@cache
def _encoder(options: EncodingOptions) -> tuple[BlockEncoder, Accelerator, str]:
    """Of a worker: what encodes its blocks, the accelerator in use, and what `choose_accelerator` says of it."""
    free_large_tables()
    tokenizer = build_tokenizer(options.data)
    accelerator, encode, notice = choose_accelerator(tokenizer, options.accelerator)
    return BlockEncoder(options, tokenizer, encode), accelerator, notice


def _choice(options: EncodingOptions) -> tuple[Accelerator, str]:
    _, accelerator, notice = _encoder(options)
    return accelerator, notice


def _encode(options: EncodingOptions, block: Block) -> EncodedBlock:
    return _encoder(options)[0].encode(block)


class Encoders:
    """What encodes blocks: one BlockEncoder in this process, or one in each of `workers` processes.

    A context: its processes end with it. `accelerator` and `notice` are what `choose_accelerator` found. Of several
    processes only the workers load an accelerator, all at the same time. `block_encoder` is this process's; with
    workers it has the plain tokenizer.
    """

    def __init__(self, options: EncodingOptions, tokenizer: Tokenizer, workers: int) -> None:
        """Raises ValueError where a worker process died."""
        self._options, self._workers = options, workers
        self._pool: ProcessPoolExecutor | None = None
        if workers == 1:
            self.accelerator, encode, self.notice = choose_accelerator(tokenizer, options.accelerator)
            self.block_encoder = BlockEncoder(options, tokenizer, encode)
            return
        self.block_encoder = BlockEncoder(options, tokenizer, build_encoder(tokenizer, "none"))
        # spawn: a forked child inherits locks held by other threads
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
        with self._explained():
            with shielded(signal.SIGINT):  # processes start with these calls
                choices = [self._pool.submit(_choice, options) for _ in range(workers)]
            self.accelerator, self.notice = choices[0].result()

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """An error that says what to do where a process died. Processes end with any error: nobody may have entered."""
        try:
            yield
        except BrokenProcessPool as error:
            raise ValueError(
                f"one of the {self._workers} worker processes died (killed, or out of memory?); nothing was written; "
                f"try fewer --workers"
            ) from error
        except BaseException:
            self.__exit__()
            raise

    def encode(self, blocks: Iterable[Block]) -> Iterator[EncodedBlock]:
        """Encode blocks; results in the order of the blocks.

        A block of an uncompressed file goes to a worker as a range of bytes, and its tokens come back as bytes. At most
        2 * workers + 2 blocks are under way, so memory does not grow with the corpus.

        Raises:
            ValueError: a worker process died, or what reading and tokenizing raise.
        """
        if self._pool is None:
            yield from map(self.block_encoder.encode, blocks)
            return
        waiting: deque[Future[EncodedBlock]] = deque()
        with self._explained():
            for block in blocks:
                waiting.append(self._pool.submit(_encode, self._options, block.lean()))
                if len(waiting) > 2 * self._workers + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
