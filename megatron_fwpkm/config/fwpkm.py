"""The fast-weight product key memory and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import ARCHITECTURE, MAY_CHANGE, NOT_COMPARED, SAME_RUN, TRAINING_ONLY, AtLeast, AtMost, Between


@dataclass(frozen=True)
class FwPKMConfig:
    """Fast-weight Product Key Memory (arXiv 2601.00671); every flag begins with --fwpkm-."""

    layer_numbers: Annotated[tuple[int, ...], ARCHITECTURE] = ()
    """Layers, counted from 1, that get a memory before their attention. The paper's @2,6,10 counts from 0 and is 3 7 11
    here (default: none, a plain transformer)."""
    num_heads: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 1
    """Number of query heads; all heads read the same values."""
    num_subkeys: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 512
    """Number of sub-keys in each half of the keys; the memory has num_subkeys squared slots."""
    key_dim: Annotated[int, AtLeast(2), AtMost(2**20), ARCHITECTURE] = 512
    """Width of one head's query, both halves together."""
    value_dim: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 512
    """Width of one slot's value."""
    topk: Annotated[int, AtLeast(1), AtMost(2**20), MAY_CHANGE] = 8
    """Number of slots that each head reads per token."""
    chunk_size: Annotated[int, AtLeast(1), AtMost(2**20), MAY_CHANGE] = 512
    """Number of tokens between two writes to the memory."""
    lookahead: Annotated[int, AtLeast(0), MAY_CHANGE] = 1
    """The slots that a token reads learn the value of the token this many positions ahead."""
    inner_lr: Annotated[float, AtLeast(0), AtMost(100), MAY_CHANGE] = 1.0
    """Learning rate of the inner update of values and sub-keys; 0 freezes the memory."""
    addressing_weight: Annotated[float, AtLeast(0), AtMost(1000), MAY_CHANGE] = 1.0
    """Weight of the addressing loss, which spreads the reads over the sub-keys; 0 freezes the sub-keys."""
    score: Annotated[Literal["idw", "dot_product"], ARCHITECTURE] = "idw"
    """Score of a query against a sub-key: inverse-distance weighting (idw) or dot product."""
    gate: Annotated[bool, ARCHITECTURE] = True
    """Scale the memory's output and, with --fwpkm-gate-writes, its writes by a learned gate per token."""
    gate_writes: Annotated[bool, ARCHITECTURE] = True
    """Let the gate weigh the writes, too; without it, it scales the output only and every token is written alike."""
    gate_bias_init: Annotated[float, SAME_RUN, TRAINING_ONLY] = 0.0
    """Initial bias of the gate; with a negative value the gate starts nearly closed."""
    normalize_targets: Annotated[bool, ARCHITECTURE] = True
    """Standardise each target value to zero mean and unit variance over its width."""
    boundary: Annotated[Literal["drop", "carry"], MAY_CHANGE] = "drop"
    """What happens in training to the last lookahead queries of a chunk: drop them, or carry them into the next
    chunk."""
    reset: Annotated[Literal["never", "step", "document"], MAY_CHANGE] = "never"
    """When training resets the memory to its initial state: never, before every step, or at the start of every
    document."""
    owner: Annotated[Literal["micro-batch", "sequence"], MAY_CHANGE, TRAINING_ONLY] = "micro-batch"
    """Whom a memory belongs to in training: the sequences of a micro-batch share one (micro-batch, as in the paper), or
    every sequence has one of its own, which starts from the initial memory and ends with the sequence (sequence, which
    requires --fwpkm-reset step or document)."""
    pswa_probability: Annotated[float, Between(0, 1), MAY_CHANGE, TRAINING_ONLY] = 0.0
    """Probability that in a training step all layers with full attention (fa in --layer-pattern) see --window-size
    only, so that the model learns to use its memory; one draw per step for the whole model, none in evaluation."""
    dp_sync: Annotated[Literal["average"] | None, MAY_CHANGE, TRAINING_ONLY] = None
    """How data-parallel replicas synchronise their memories: not at all (none), or by taking their mean at an interval
    (average)."""
    dp_sync_interval: Annotated[int, AtLeast(1), MAY_CHANGE, TRAINING_ONLY] = 1
    """With --fwpkm-dp-sync average: number of iterations between two synchronisations."""
    save_replicas: Annotated[int | Literal["all"], AtLeast(1), NOT_COMPARED, TRAINING_ONLY] = "all"
    """Number of data-parallel replicas, evenly spread, whose memories a checkpoint contains (at most all of them). With
    fewer than all, the other replicas do not resume bit for bit: they load a saved memory by --fwpkm-load-dp-rule."""
    load_dp_rule: Annotated[Literal["modulo", "replica0", "reset"], NOT_COMPARED, TRAINING_ONLY] = "modulo"
    """Which memory a replica loads if the number of replicas has changed, or if its own memory was not saved: of the N
    saved ones, replica r takes that at r modulo N (modulo) or the first (replica0), or it starts from the initial
    memory (reset)."""
    check_consistency_interval: Annotated[int, AtLeast(0), NOT_COMPARED, TRAINING_ONLY] = 100
    """Iterations between two checks that the tensor- and context-parallel ranks that share a memory read and write it
    identically (by a hash of slot indices, gates and some queries); 0 disables the check."""
    table_dtype: Annotated[Literal["fp32", "bf16"], MAY_CHANGE, TRAINING_ONLY] = "fp32"
    """Data type of the values; bf16 halves the size of the values and of the undo log, and uses stochastic rounding,
    seeded by --seed, for writes."""
    undo_log: Annotated[Literal["fp32", "bf16", "recompute"], MAY_CHANGE, TRAINING_ONLY] = "fp32"
    """What is kept of overwritten values until the backward pass: all of them exactly (fp32), all of them rounded,
    which makes the gradients of the slot weights approximate (bf16), or only the first value of each slot, from which
    the backward pass recomputes the rest (recompute)."""
    implementation: Annotated[Literal["auto", "reference", "sparse", "triton"], NOT_COMPARED, TRAINING_ONLY] = "auto"
    """Implementation of the memory: dense autograd (reference), torch operations on the touched values only (sparse),
    or Triton kernels for the GPU (triton). auto selects triton on CUDA where the kernels support these sizes, and
    sparse elsewhere."""
    cuda_graph: Annotated[Literal["auto", "on", "off"], NOT_COMPARED, TRAINING_ONLY] = "off"
    """Run forward and backward of the memory layers in training as CUDA graphs, which costs memory for every
    micro-batch in flight and saves the host's time: where possible (auto), always, or the run is refused (on), or never
    (off)."""
