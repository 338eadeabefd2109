"""Blocks of text to tokens, in this process or in several, in the order of the input. Free of torch."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache

import numpy as np

from megatron_fwpkm.config import DataConfig

from .corpus import BadRecord, Block, records
from .indexed_format import token_dtype
from .tokenizers import build_tokenizer


@dataclass(frozen=True)
class EncodingOptions:
    """All that decides the tokens of a block."""

    data: DataConfig
    json_keys: tuple[str, ...]
    append_eod: bool
    stop_at_bad: bool


@dataclass(frozen=True)
class EncodedBlock:
    """Tokens of a block: for each key the documents back to back, and their lengths in tokens (EOD included)."""

    consumed: int
    tokens: tuple[bytes, ...]
    lengths: tuple[array[int], ...]
    text_bytes: tuple[int, ...]
    bad: tuple[BadRecord, ...]


class BlockEncoder:
    """Encodes blocks with one tokenizer."""

    def __init__(self, options: EncodingOptions) -> None:
        """Raises ValueError as `build_tokenizer` does."""
        self.options = options
        self.tokenizer = build_tokenizer(options.data)
        self.dtype = token_dtype(self.tokenizer.vocab_size)

    def encode(self, block: Block) -> EncodedBlock:
        """The block's good records as tokens, the others as they are; with `stop_at_bad` nothing behind the first bad
        one."""
        keys = range(len(self.options.json_keys))
        end = [self.tokenizer.eod] if self.options.append_eod else []
        parts: list[list[bytes]] = [[] for _ in keys]
        lengths = tuple(array("i") for _ in keys)
        text_bytes = [0 for _ in keys]
        bad: list[BadRecord] = []
        for record in records(block, self.options.json_keys):
            if not isinstance(record, BadRecord):
                try:
                    encoded = [self.tokenizer.encode(text) for text in record.texts]
                except ValueError as error:
                    raw = "\n".join(record.texts).encode("utf-8", "surrogatepass")
                    record = BadRecord(block.path, record.line, "cannot be encoded", str(error), raw)
                else:
                    if all(encoded):
                        for key, ids in enumerate(encoded):
                            parts[key].append(np.array(ids + end, dtype=self.dtype).tobytes())
                            lengths[key].append(len(ids) + len(end))
                            text_bytes[key] += len(record.texts[key].encode("utf-8"))
                        continue
                    raw = "\n".join(record.texts).encode("utf-8")
                    record = BadRecord(block.path, record.line, "empty document", "no tokens", raw)
            bad.append(record)
            if self.options.stop_at_bad:
                break
        tokens = tuple(b"".join(documents) for documents in parts)
        return EncodedBlock(block.consumed, tokens, lengths, tuple(text_bytes), tuple(bad))


@cache
def _encoder(options: EncodingOptions) -> BlockEncoder:
    return BlockEncoder(options)


def _encode(options: EncodingOptions, block: Block) -> EncodedBlock:
    return _encoder(options).encode(block)


def _start_worker() -> None:
    """A worker leaves interruption to its parent and ends when the parent does, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def encode_blocks(blocks: Iterable[Block], options: EncodingOptions, workers: int) -> Iterator[EncodedBlock]:
    """Encode blocks with `workers` processes (1: in this one), results in the order of the blocks.

    At most 2 * workers + 2 blocks are under way, so memory does not grow with the corpus.

    Raises:
        ValueError: a worker process died, or what reading and tokenizing raise.
    """
    if workers == 1:
        encoder = BlockEncoder(options)
        yield from map(encoder.encode, blocks)
        return
    waiting: deque[Future[EncodedBlock]] = deque()
    # spawn: a forked child inherits locks held by other threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        for block in blocks:
            waiting.append(pool.submit(_encode, options, block))
            if len(waiting) > 2 * workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"one of the {workers} worker processes died (killed, or out of memory?); nothing was written, try fewer "
            f"--workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
