"""Whether what a memory writes is ever read: chunks, sequences and resets."""

from __future__ import annotations

from collections.abc import Iterator

from .derived import data_parallel_size, global_batch_size, replica_size
from .pretrain import PretrainConfig


def chunk_problems(config: PretrainConfig, world_size: int | None = None) -> Iterator[str]:
    """A sentence where no chunk is ever whole, or where nothing that is written is ever read.

    A chunk ends with its sequence at the latest: what is left then is written (but for the last --fwpkm-lookahead
    tokens), and read by later sequences, unless the memory is reset before they come.
    """
    fwpkm, length = config.fwpkm, config.model.seq_length
    if not fwpkm.layer_numbers or fwpkm.chunk_size <= fwpkm.lookahead:
        return
    most = longest_chunk(config, world_size)
    if fwpkm.chunk_size <= most:
        return
    given = f"--fwpkm-chunk-size {fwpkm.chunk_size}"
    if fwpkm.chunk_size > length:
        reason = f"is longer than --seq-length {length}, but a chunk cannot span sequences"
    elif fwpkm.reset == "step":
        reason = (
            f"writes only at the end of a sequence of --seq-length {length}, and with one micro-batch per step "
            "--fwpkm-reset step resets the memory before anything is read"
        )
    else:
        first = f"{fwpkm.chunk_size} tokens"
        if fwpkm.boundary == "carry":
            first += f" and --fwpkm-lookahead {fwpkm.lookahead} more (--fwpkm-boundary carry)"
        reason = (
            f"first writes after {first} of --seq-length {length}, and --fwpkm-reset document resets it before "
            "anything is read"
        )
    advice = f"use a chunk of at most {most}" if most > fwpkm.lookahead else "use longer sequences"
    yield f"{given} {reason}; {advice}"


def longest_chunk(config: PretrainConfig, world_size: int | None = None) -> int:
    """The longest chunk with which something that is written is read, and which is whole within a sequence."""
    fwpkm, length = config.fwpkm, config.model.seq_length
    if not fwpkm.inner_lr or fwpkm.reset == "never":
        return length
    if fwpkm.reset == "step" and not _one_micro_batch(config, world_size):
        return length
    return length - 1 - (fwpkm.lookahead if fwpkm.boundary == "carry" else 0)


def notes_on_writing(config: PretrainConfig) -> Iterator[str]:
    """What to know of a memory that is never written, or whose sequences or documents never read their own writes."""
    fwpkm, length = config.fwpkm, config.model.seq_length
    if not fwpkm.layer_numbers:
        return
    if not fwpkm.inner_lr:
        yield "The memory is never written (--fwpkm-inner-lr 0)"
        return
    before = fwpkm.chunk_size + (fwpkm.lookahead if fwpkm.boundary == "carry" else 0)
    if before >= length:
        readers = "later micro-batches of its step" if fwpkm.reset == "step" else "later sequences"
        yield (
            f"A sequence never reads its own writes, because its only write (--fwpkm-chunk-size {fwpkm.chunk_size}) "
            f"comes at its end (--seq-length {length}); {readers} read it, and no gradient reaches what is written"
        )
    elif fwpkm.reset == "document":
        yield f"Documents of at most {before:,} tokens never read their own writes (--fwpkm-reset document)"


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
