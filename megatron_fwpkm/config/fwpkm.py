"""The fast-weight product key memory and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import ARCHITECTURE, MAY_CHANGE, NOT_COMPARED, SAME_RUN, TRAINING_ONLY, AtLeast, AtMost


@dataclass(frozen=True)
class FwPKMConfig:
    """Fast-weight Product Key Memory (arXiv 2601.00671); every flag begins with --fwpkm-."""

    layer_numbers: Annotated[tuple[int, ...], ARCHITECTURE] = ()
    """Layers (counted from 1) that get a memory before their attention; the paper's @2,6,10 is 3 7 11 here;
    default none: a plain transformer."""
    num_heads: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 1
    """Query heads that share the values table."""
    num_subkeys: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 512
    """Sub-keys per half; the table has the square of it as slots."""
    key_dim: Annotated[int, AtLeast(2), AtMost(2**20), ARCHITECTURE] = 512
    """Width of one head's query (both halves together)."""
    value_dim: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 512
    """Width of a table row."""
    topk: Annotated[int, AtLeast(1), AtMost(2**20), MAY_CHANGE] = 8
    """Slots read per head and token."""
    chunk_size: Annotated[int, AtLeast(1), AtMost(2**20), MAY_CHANGE] = 512
    """Tokens between two writes."""
    lookahead: Annotated[int, AtLeast(0), MAY_CHANGE] = 1
    """A token's slots learn the value of the token this far ahead."""
    inner_lr: Annotated[float, AtLeast(0), AtMost(100), MAY_CHANGE] = 1.0
    """Step size of the inner update of values and keys; 0 freezes the memory."""
    addressing_weight: Annotated[float, AtLeast(0), AtMost(1000), MAY_CHANGE] = 1.0
    """Weight of the addressing loss that spreads the keys; 0 freezes the keys."""
    score: Annotated[Literal["idw", "dot_product"], ARCHITECTURE] = "idw"
    """Score of a query against a sub-key: inverse-distance weighting or dot product."""
    gate: Annotated[bool, ARCHITECTURE] = True
    """Gate the memory's output and its writes by a learned number per token."""
    gate_bias_init: Annotated[float, SAME_RUN, TRAINING_ONLY] = 0.0
    """Start value of the gate's bias; negative values start with a nearly closed memory."""
    normalize_targets: Annotated[bool, ARCHITECTURE] = True
    """z-score the target values over their width."""
    boundary: Annotated[Literal["drop", "carry"], MAY_CHANGE] = "drop"
    """At a chunk's end in training, drop the last lookahead queries or carry them into the next chunk."""
    reset: Annotated[Literal["never", "step", "document"], MAY_CHANGE] = "never"
    """When training puts the initial memory back: never, before every step, or at every document start."""
    dp_sync: Annotated[Literal["average"] | None, MAY_CHANGE, TRAINING_ONLY] = None
    """Every data-parallel replica keeps its own memory (none), or takes the mean of all at an interval."""
    dp_sync_interval: Annotated[int, AtLeast(1), MAY_CHANGE, TRAINING_ONLY] = 1
    """With --fwpkm-dp-sync average: iterations between two averagings."""
    load_dp_rule: Annotated[Literal["modulo", "replica0", "reset"], NOT_COMPARED, TRAINING_ONLY] = "modulo"
    """Where another number of replicas was saved: replica r takes the memory of r modulo that number, all take the
    first one's, or all begin with the initial memory."""
    check_consistency_interval: Annotated[int, AtLeast(0), NOT_COMPARED, TRAINING_ONLY] = 100
    """Iterations between two checks that the tensor- and context-parallel ranks which share a memory read and write it
    alike (a hash of chosen slots, gates and some queries); 0 turns them off."""
    table_dtype: Annotated[Literal["fp32", "bf16"], MAY_CHANGE, TRAINING_ONLY] = "fp32"
    """How the values are stored: bf16 halves table and undo log; writes then round stochastically, by the seed."""
    undo_log: Annotated[Literal["fp32", "bf16", "recompute"], MAY_CHANGE, TRAINING_ONLY] = "fp32"
    """What is kept of overwritten rows until backward: all as they were (fp32), all rounded, which makes gradients of
    slot weights approximate (bf16), or each slot's first value, from which backward repeats everything (recompute)."""
    implementation: Annotated[Literal["auto", "reference", "sparse", "triton"], NOT_COMPARED, TRAINING_ONLY] = "auto"
    """What computes the memory: dense autograd (reference), torch on touched rows only (sparse), or kernels that do the
    same on a GPU (triton); auto takes triton on CUDA where it can run these sizes, and sparse elsewhere."""
