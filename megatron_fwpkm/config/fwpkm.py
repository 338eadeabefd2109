"""The fast-weight product key memory and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FwPKMConfig:
    """Fast-weight Product Key Memory (arXiv 2601.00671); every flag begins with --fwpkm-."""

    layer_numbers: tuple[int, ...] = ()
    """Layers (counted from 1) that get a memory before their attention; the paper's @2,6,10 is 3 7 11 here;
    default none: a plain transformer."""
    num_heads: int = 1
    """Query heads that share the values table."""
    num_subkeys: int = 512
    """Sub-keys per half; the table has the square of it as slots."""
    key_dim: int = 512
    """Width of one head's query (both halves together)."""
    value_dim: int = 512
    """Width of a table row."""
    topk: int = 8
    """Slots read per head and token."""
    chunk_size: int = 512
    """Tokens between two writes."""
    lookahead: int = 1
    """A token's slots learn the value of the token this far ahead."""
    inner_lr: float = 1.0
    """Step size of the inner update of values and keys; 0 freezes the memory."""
    addressing_weight: float = 1.0
    """Weight of the addressing loss that spreads the keys; 0 freezes the keys."""
    score: Literal["idw", "dot_product"] = "idw"
    """Score of a query against a sub-key: inverse-distance weighting or dot product."""
    gate: bool = True
    """Gate the memory's output and its writes by a learned number per token."""
    gate_bias_init: float = 0.0
    """Start value of the gate's bias; negative values start with a nearly closed memory."""
    normalize_targets: bool = True
    """z-score the target values over their width."""
    boundary: Literal["drop", "carry"] = "drop"
    """At a chunk's end in training, drop the last lookahead queries or carry them into the next chunk."""
    reset: Literal["never", "step", "document"] = "never"
    """When training puts the initial memory back: never, before every step, or at every document start."""
    dp_sync: Literal["average"] | None = None
    """Every data-parallel replica keeps its own memory (none), or takes the mean of all at an interval."""
    dp_sync_interval: int = 1
    """With --fwpkm-dp-sync average: iterations between two averagings."""
    load_dp_rule: Literal["modulo", "replica0", "reset"] = "modulo"
    """Where another number of replicas was saved: replica r takes the memory of r modulo that number, all take the
    first one's, or all begin with the initial memory."""
    check_consistency_interval: int = 100
    """Iterations between two checks that the tensor- and context-parallel ranks which share a memory read and write it
    alike (a hash of chosen slots, gates and some queries); 0 turns them off."""
    table_dtype: Literal["fp32", "bf16"] = "fp32"
    """How the values are stored: bf16 halves table and undo log; writes then round stochastically, by the seed."""
    undo_log: Literal["fp32", "bf16", "recompute"] = "fp32"
    """What is kept of overwritten rows until backward: all as they were (fp32), all rounded, which makes gradients of
    slot weights approximate (bf16), or each slot's first value, from which backward repeats everything (recompute)."""
    implementation: Literal["auto", "reference", "sparse", "triton"] = "auto"
    """What computes the memory: dense autograd (reference), torch on touched rows only (sparse), or kernels that do the
    same on a GPU (triton); auto takes triton on CUDA where it can run these sizes, and sparse elsewhere."""
