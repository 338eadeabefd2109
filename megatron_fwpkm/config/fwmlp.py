"""The fast-weight MLP, the paper's baseline of a memory, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import ARCHITECTURE, MAY_CHANGE, SAME_RUN, TRAINING_ONLY, AtLeast, AtMost


@dataclass(frozen=True)
class FwMLPConfig:
    """Fast-weight MLP in the place of a FwPKM, with the same block around it; every flag begins with --fwmlp-.

    What concerns replicas, their checkpoints and checks is set by --fwpkm-dp-sync, --fwpkm-dp-sync-interval,
    --fwpkm-save-replicas, --fwpkm-load-dp-rule and --fwpkm-check-consistency-interval for all memories.
    """

    layer_numbers: Annotated[tuple[int, ...], ARCHITECTURE] = ()
    """Layers, counted from 1, that get a fast-weight MLP before their attention; none of them may be among
    --fwpkm-layer-numbers (default: none)."""
    hidden_size: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 2304
    """Hidden width of the fast SwiGLU, which tensor- and context-parallel ranks share."""
    key_dim: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 512
    """Width of a query, the input of the fast SwiGLU."""
    value_dim: Annotated[int, AtLeast(1), AtMost(2**20), ARCHITECTURE] = 512
    """Width of a value, the output of the fast SwiGLU."""
    chunk_size: Annotated[int, AtLeast(1), AtMost(2**20), MAY_CHANGE] = 512
    """Number of tokens between two writes, each of which is one step of gradient descent."""
    lookahead: Annotated[int, AtLeast(0), MAY_CHANGE] = 1
    """A token learns the mean of its own value and the values of this many tokens after it."""
    inner_lr: Annotated[float, AtLeast(0), AtMost(100), MAY_CHANGE] = 0.1
    """Learning rate of the inner update of all fast weights, on a mean over tokens and width; 0 freezes them."""
    gate: Annotated[bool, ARCHITECTURE] = True
    """Scale the memory's output by a learned gate per token."""
    gate_writes: Annotated[bool, ARCHITECTURE] = False
    """Weigh the loss of every token by its gate, as a FwPKM does."""
    gate_bias_init: Annotated[float, SAME_RUN, TRAINING_ONLY] = 0.0
    """Initial bias of the gate; with a negative value the gate starts nearly closed."""
    normalize_targets: Annotated[bool, ARCHITECTURE] = True
    """Standardise each value to zero mean and unit variance over its width."""
    boundary: Annotated[Literal["drop", "carry"], MAY_CHANGE] = "drop"
    """What happens in training to the last lookahead queries of a chunk: drop them, or carry them into the next
    chunk."""
    reset: Annotated[Literal["never", "step", "document"], MAY_CHANGE] = "never"
    """When training resets the fast weights to their initial state: never, before every step, or at the start of every
    document."""
    owner: Annotated[Literal["micro-batch", "sequence"], MAY_CHANGE, TRAINING_ONLY] = "micro-batch"
    """Whom the fast weights belong to in training: the sequences of a micro-batch share them (micro-batch), or every
    sequence has its own, which start from the initial ones and end with the sequence (sequence, which requires
    --fwmlp-reset step or document)."""
