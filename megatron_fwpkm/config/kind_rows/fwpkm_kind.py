"""The fast-weight product key memory."""

from __future__ import annotations

from collections.abc import Sequence

from ..derived import ShardedCount, num_slots, table_bytes, table_elements, value_bytes
from ..layer_kind import FastWeights, LayerKind, Role, TableTraffic, layers_in_words, weight_bytes
from ..pretrain import PretrainConfig
from ..undo_log_bytes import document_start_bytes, journal_bytes, passing_log_bytes, undo_log_bytes

_PAIR_BYTES = 64
"""Per token, head and slot read: index, weight, score and what the key update's second derivative keeps."""


def _fwpkm_parameters(config: PretrainConfig) -> ShardedCount:
    """Four norms and linears (DESIGN section 2); linears have biases."""
    fwpkm, hidden, width = config.fwpkm, config.model.hidden_size, config.fwpkm.value_dim
    query = hidden + (hidden + 1) * fwpkm.num_heads * fwpkm.key_dim
    gate = hidden + hidden + 1 if fwpkm.gate else 0
    return ShardedCount(
        sharded=(hidden + 1) * width + width + width * hidden,  # value_proj, output_norm, output_proj.weight
        replicated=query + gate + hidden + hidden,  # value_norm and output_proj.bias
    )


def _fwpkm_activation_bytes(config: PretrainConfig) -> ShardedCount:
    """Undo logs apart. A rank has queries and reads of the tokens of all context-parallel ranks."""
    fwpkm = config.fwpkm
    everyones = 5 * fwpkm.num_heads * fwpkm.key_dim + _PAIR_BYTES * fwpkm.num_heads * fwpkm.topk
    own = (10 + 7 * weight_bytes(config) // 2) * config.model.hidden_size
    # Values of all tokens in fewer columns are as many as those of this rank's tokens.
    return ShardedCount(18 * fwpkm.value_dim, own + everyones * config.parallel.context_parallel_size)


def _fwpkm_flops(config: PretrainConfig, layer_number: int) -> float:
    """Linears, scores of all sub-keys, read; write and movement of the sub-keys unless the memory is frozen."""
    fwpkm, hidden = config.fwpkm, config.model.hidden_size
    queries, pairs = fwpkm.num_heads * fwpkm.key_dim, fwpkm.num_heads * fwpkm.topk
    linears = hidden * (queries + 2 * fwpkm.value_dim + int(fwpkm.gate))
    write = pairs * (fwpkm.value_dim + fwpkm.key_dim) if fwpkm.inner_lr else 0
    return 2.0 * (linears + fwpkm.num_subkeys * queries + pairs * fwpkm.value_dim + write)


def _fwpkm_traffic(config: PretrainConfig, distinct: float) -> TableTraffic:
    """Rows of the values: each moves once per chunk, however many tokens share it. Sub-keys are not counted.

    An undo log of `recompute` counts as a whole one, which it stands for; documents are not looked at.
    """
    fwpkm, length = config.fwpkm, config.model.seq_length
    chunk, ahead = fwpkm.chunk_size, fwpkm.lookahead
    if fwpkm.boundary == "drop":  # a last chunk that is too short for its lookahead is not written
        logged = read = length
        rest = length % chunk
        written = length - rest if rest <= ahead else length
    else:  # the tokens that wait are read again with their chunk, and the last ones when the sequence ends
        chunks = max(0, length - ahead) // chunk
        left = max(0, length - chunks * chunk - ahead)
        logged = length + max(0, chunks - 1) * ahead
        read, written = logged + left, chunks * (chunk + ahead) + left
    rows = fwpkm.num_heads * fwpkm.topk * distinct * fwpkm.value_dim / length
    size = value_bytes(config)
    kept = 2 if fwpkm.undo_log == "bf16" else size
    return TableTraffic(read * rows * size, written * rows * size if fwpkm.inner_lr else 0.0, 2 * logged * rows * kept)


def _fwpkm_fp8_widths(config: PretrainConfig) -> dict[str, int]:
    """The gate has one output: its linear is never in FP8."""
    fwpkm, ranks = config.fwpkm, config.parallel.tensor_model_parallel_size
    return {
        "--fwpkm-num-heads times --fwpkm-key-dim": fwpkm.num_heads * fwpkm.key_dim,
        "--fwpkm-value-dim": fwpkm.value_dim // ranks,
    }


def _fwpkm_reach(config: PretrainConfig, layer_number: int) -> str:
    fwpkm = config.fwpkm
    heads = f"{fwpkm.num_heads:,} head{'s' * (fwpkm.num_heads != 1)}"
    return (
        f"FwPKM {num_slots(fwpkm):,} slots x {fwpkm.value_dim}, {heads} top-{fwpkm.topk}, chunk {fwpkm.chunk_size}"
    )


def _fwpkm_divided(config: PretrainConfig) -> dict[str, int]:
    return {"--fwpkm-num-subkeys": config.fwpkm.num_subkeys, "--fwpkm-value-dim": config.fwpkm.value_dim}


def _fwpkm_made_by(config: PretrainConfig) -> str:
    fwpkm = config.fwpkm
    if fwpkm.num_heads * fwpkm.key_dim > fwpkm.num_subkeys * fwpkm.value_dim:
        made = f"--fwpkm-num-heads {fwpkm.num_heads} and --fwpkm-key-dim {fwpkm.key_dim}"
        return f"{made} (every head has its own sub-keys)"
    made = f"--fwpkm-num-subkeys {fwpkm.num_subkeys} and --fwpkm-value-dim {fwpkm.value_dim}"
    return f"{made} (a table has num_subkeys squared rows)"


def _fwpkm_summary(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    where = layers_in_words(number - 1 for number in layer_numbers)
    return (
        f"A Fast-weight Product Key Memory (arXiv 2601.00671), a sparse memory of {num_slots(config.fwpkm):,} slots "
        f"before the token mixer of {where} (counted from 0), is read for every token and updated by gradient "
        f"descent after every {config.fwpkm.chunk_size} tokens, in inference too."
    )


FWPKM = LayerKind(
    name="fwpkm",
    role=Role.MEMORY,
    label="memory",
    parameters=_fwpkm_parameters,
    activation_bytes=_fwpkm_activation_bytes,
    flops=_fwpkm_flops,
    traffic=_fwpkm_traffic,
    reach=_fwpkm_reach,
    summary=_fwpkm_summary,
    divided=_fwpkm_divided,
    fp8_widths=_fwpkm_fp8_widths,
    fast_weights=FastWeights(
        options=lambda config: config.fwpkm,
        prefix="--fwpkm-",
        elements=table_elements,
        bytes=table_bytes,
        shared=_fwpkm_divided,
        made_by=_fwpkm_made_by,
        kept_bytes=undo_log_bytes,
        document_bytes=document_start_bytes,
        beside_bytes=journal_bytes,
        passing_bytes=passing_log_bytes,
    ),
    context_parallel=True,
    separates_documents=True,
)
"""Its row."""
