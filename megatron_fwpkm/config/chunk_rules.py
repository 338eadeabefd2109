"""Whether what a memory writes is ever read: chunks, sequences and resets."""

from __future__ import annotations

from collections.abc import Iterator

from .derived import data_parallel_size, global_batch_size, outlives_sequence, replica_size
from .memories import MemoryKind, memory_kinds
from .pretrain import PretrainConfig


def chunk_problems(config: PretrainConfig, world_size: int | None = None) -> Iterator[str]:
    """A sentence where no chunk is ever whole, or where nothing that is written is ever read.

    A chunk ends with its sequence at the latest: what is left then is written (but for the last --fwpkm-lookahead
    tokens), and read by later sequences, unless the memory is reset before they come.
    """
    for memory in memory_kinds(config):
        options = memory.options
        if options.chunk_size > options.lookahead:
            yield from _chunk_problem(config, memory, longest_chunk(config, memory, world_size))


def _chunk_problem(config: PretrainConfig, memory: MemoryKind, most: int) -> Iterator[str]:
    options, prefix, length = memory.options, memory.fast.prefix, config.model.seq_length
    if options.chunk_size <= most:
        return
    given = f"{prefix}chunk-size {options.chunk_size}"
    if options.chunk_size > length:
        reason = f"is longer than --seq-length {length}, but a chunk cannot span sequences"
    elif outlives_sequence(options):
        reason = (
            f"writes only at the end of a sequence of --seq-length {length}, and with one micro-batch per step "
            f"{prefix}reset step resets the memory before anything is read"
        )
    else:
        first = f"{options.chunk_size} tokens"
        if options.boundary == "carry":
            first += f" and {prefix}lookahead {options.lookahead} more ({prefix}boundary carry)"
        ends = "reset document resets it" if options.reset == "document" else "owner sequence ends the memory"
        reason = f"first writes after {first} of --seq-length {length}, and {prefix}{ends} before anything is read"
    advice = f"use a chunk of at most {most}" if most > options.lookahead else "use longer sequences"
    yield f"{given} {reason}; {advice}"


def longest_chunk(config: PretrainConfig, memory: MemoryKind, world_size: int | None = None) -> int:
    """The longest chunk with which something that is written is read, and which is whole within a sequence."""
    options, length = memory.options, config.model.seq_length
    if not options.inner_lr or options.reset == "never":
        return length
    if outlives_sequence(options) and not _one_micro_batch(config, world_size):
        return length
    return length - 1 - (options.lookahead if options.boundary == "carry" else 0)


def notes_on_writing(config: PretrainConfig, memory: MemoryKind) -> Iterator[str]:
    """What to know of a memory that is never written, or whose sequences or documents never read their own writes."""
    options, prefix, length = memory.options, memory.fast.prefix, config.model.seq_length
    if not options.inner_lr:
        yield f"The memory is never written ({prefix}inner-lr 0)"
        return
    before = options.chunk_size + (options.lookahead if options.boundary == "carry" else 0)
    if before >= length:
        readers = "later micro-batches of its step" if options.reset == "step" else "later sequences"
        yield (
            f"A sequence never reads its own writes, because its only write ({prefix}chunk-size {options.chunk_size}) "
            f"comes at its end (--seq-length {length}); {readers} read it, and no gradient reaches what is written"
        )
    elif options.reset == "document":
        yield f"Documents of at most {before:,} tokens never read their own writes ({prefix}reset document)"


def _one_micro_batch(config: PretrainConfig, world_size: int | None) -> bool:
    """Whether a replica's steps are known to have one micro-batch each."""
    if config.training.global_batch_size is None:
        return True
    if world_size is None:
        replicas = 1  # makes the most micro-batches
    elif world_size % replica_size(config):
        return False
    else:
        replicas = data_parallel_size(config, world_size)
    return global_batch_size(config, replicas) <= config.training.micro_batch_size * replicas
