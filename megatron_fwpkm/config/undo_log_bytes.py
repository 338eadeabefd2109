"""Bytes that a product key memory needs beside its tables: its undo log and what a reset restores. Free of torch."""

from __future__ import annotations

from .derived import global_batch_size, num_slots, outlives_sequence, sub_key_elements, value_bytes
from .pretrain import PretrainConfig

_INDEX_BYTES = 8
JOURNAL_SPARE_ROWS = 256
"""Rows of a journal beyond those that a step can touch."""


def undo_log_bytes(config: PretrainConfig) -> int:
    """Upper bound of what one memory keeps per micro-batch until its backward pass: as if all reads of a chunk differ.

    While sub-keys are updated, their state before every chunk is kept; that of the first chunk is in the log. With
    --fwpkm-reset document, every sequence counts as one document; `document_start_bytes` is what further ones add.
    """
    fwpkm, chunks = config.fwpkm, _chunk_reads(config)
    if fwpkm.undo_log == "recompute":
        rows = min(num_slots(fwpkm), sum(number * reads for reads, number in chunks.items())) * _row_bytes(config)
    else:
        rows = _logged_rows(config) * _row_bytes(config, 2 if fwpkm.undo_log == "bf16" else value_bytes(config))
    return _calls(config) * (rows + sum(chunks.values()) * _moving_sub_key_bytes(config))


def document_start_bytes(config: PretrainConfig) -> int:
    """Upper bound of what a document start inside a sequence adds to `undo_log_bytes`; 0 if it does not split a chunk.

    A chunk ends at the end of a document, so there is one more: another copy of the sub-keys and, if a chunk (with the
    log `recompute` a document) has more reads than there are slots, the slots once more.
    """
    fwpkm, chunks = config.fwpkm, _chunk_reads(config)
    if fwpkm.reset != "document":
        return 0
    width = 2 if fwpkm.undo_log == "bf16" else value_bytes(config)
    together = sum(number * reads for reads, number in chunks.items())
    most = together if fwpkm.undo_log == "recompute" else max(chunks)
    rows = num_slots(fwpkm) if most > num_slots(fwpkm) else 0
    return rows * _row_bytes(config, width) + _moving_sub_key_bytes(config)


def passing_log_bytes(config: PretrainConfig) -> int:
    """Upper bound of the exact log, which one memory at a time needs: until it is rounded, and again in backward."""
    kept_as_it_is = config.fwpkm.undo_log == "fp32" or (config.fwpkm.undo_log == "bf16" and value_bytes(config) == 2)
    return 0 if kept_as_it_is else _logged_rows(config) * _row_bytes(config)


def touchable_slots(config: PretrainConfig, replicas: int) -> int:
    """Slots of one memory that a step can touch: as if all its reads differ."""
    tokens = global_batch_size(config, replicas) // replicas * config.model.seq_length
    return min(num_slots(config.fwpkm), tokens * config.fwpkm.num_heads * config.fwpkm.topk)


def journal_bytes(config: PretrainConfig, replicas: int) -> int:
    """One mark per slot; the rows a step can touch, for a memory that is reset every step and for --on-nan skip."""
    fwpkm = config.fwpkm
    slots = num_slots(fwpkm)
    touched = (touchable_slots(config, replicas) + JOURNAL_SPARE_ROWS) * _row_bytes(config)
    # The writes of the others are undone at once, so that a reset or a skipped step finds nothing to undo.
    kept = outlives_sequence(fwpkm)
    undoable = config.faults.on_nan == "skip" and kept
    return slots * (1 + 2 * undoable) + touched * ((fwpkm.reset == "step" and kept) + undoable)


def _calls(config: PretrainConfig) -> int:
    """Least number of calls of a memory per micro-batch: sequences that do not share it go through it alone."""
    return 1 if outlives_sequence(config.fwpkm) else config.training.micro_batch_size


def _chunk_reads(config: PretrainConfig) -> dict[int, int]:
    """Number of chunks of a call by their number of reads: whole chunks, and the rest of the sequence."""
    fwpkm, sequences = config.fwpkm, config.training.micro_batch_size // _calls(config)
    full, tail = divmod(config.model.seq_length, fwpkm.chunk_size)
    reads = fwpkm.num_heads * fwpkm.topk * sequences
    return {tokens * reads: number for tokens, number in ((fwpkm.chunk_size, full), (tail, int(tail > 0))) if number}


def _moving_sub_key_bytes(config: PretrainConfig) -> int:
    """Bytes of a rank's sub-keys; 0 if they are not updated."""
    moving = config.fwpkm.inner_lr * config.fwpkm.addressing_weight > 0
    return 4 * sub_key_elements(config) // _sharing_ranks(config) if moving else 0


def _logged_rows(config: PretrainConfig) -> int:
    """Rows that a call logs."""
    return sum(number * min(num_slots(config.fwpkm), reads) for reads, number in _chunk_reads(config).items())


def _row_bytes(config: PretrainConfig, number: int | None = None) -> int:
    """One saved row of a values table on a rank; `number` is the bytes of a number, by default the table's."""
    return (number or value_bytes(config)) * config.fwpkm.value_dim // _sharing_ranks(config) + _INDEX_BYTES


def _sharing_ranks(config: PretrainConfig) -> int:
    """Ranks that share a memory."""
    return config.parallel.tensor_model_parallel_size * config.parallel.context_parallel_size
