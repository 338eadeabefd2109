"""The numbers and choices of a fast-weight memory, in one object that travels whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..option_checks import check_option_ranges, check_stream_numbers, options_by_name

WHOLE_NUMBERS = {"topk": 1, "chunk_size": 1, "lookahead": 0}
"""Options that are integers, and the smallest each may be."""
STEP_SIZES = {"inner_lr": 100, "addressing_weight": 1000}
"""Options that are numbers from 0, which switches something off, and the largest each may be."""
CHOICES = {
    "score": ("idw", "dot_product"),
    "boundary": ("drop", "carry"),
    "write_scale": ("consistent", "official"),
    "implementation": ("auto", "reference", "plain", "sparse", "triton"),
    "undo_log": ("fp32", "bf16", "recompute"),
}
"""Options that are words, and the words each may be."""


@dataclass(frozen=True)
class MemoryOptions:
    """What defines the reads and writes of a memory, and what computes them; checked when it is made.

    Attributes:
        topk: slots read per head, at most the sub-keys of a half.
        chunk_size: tokens per write and sequence.
        lookahead: distance from a query to its target, in tokens; at least 0, and below `chunk_size` where the last
            tokens of a chunk are not written.
        inner_lr: step size of both inner updates; 0 freezes the memory (pending tokens are still kept up).
        addressing_weight: weight of the addressing loss, which moves the sub-keys; 0 keeps them still.
        score: of a query's half and a sub-key: `idw`, -log(1e-3 + squared distance), or `dot_product`.
        boundary: `drop`: the last `lookahead` tokens of a chunk are never written. `carry`: they wait in
            `state.pending` and the result does not depend on how a text is cut into calls.
        write_scale: `consistent`, or `official` for the authors' streaming arithmetic (`carry` only).
        implementation: `reference` (dense autograd, the oracle), `plain` (short and readable, dense under autograd,
            what an export carries), `sparse` (only the rows in use), `triton` (the same in GPU kernels) or `auto`
            (`triton` on CUDA, `sparse` elsewhere).
        undo_log: what is kept of overwritten rows until backward. `fp32`: all of them, as they were. `bf16`: the same,
            rounded: half the memory, and slot weights get an approximate gradient. `recompute`: every slot's first
            value, from which backward repeats all reads and writes exactly. Nothing to `reference` and
            `plain`.

    Raises:
        ValueError: an option is out of its range, or two do not go together.
    """

    topk: int
    chunk_size: int
    lookahead: int = 1
    inner_lr: float = 1.0
    addressing_weight: float = 1.0
    score: str = "idw"
    boundary: str = "drop"
    write_scale: str = "consistent"
    implementation: str = "auto"
    undo_log: str = "fp32"

    def __post_init__(self) -> None:
        check_option_ranges(self, WHOLE_NUMBERS, STEP_SIZES, CHOICES)
        check_stream_numbers(self)

    @classmethod
    def of(cls, config: Any, prefix: str = "", **given: Any) -> MemoryOptions:
        """The options of a configuration; the names of its attributes begin with `prefix` (`options_by_name`)."""
        return options_by_name(cls, config, prefix, **given)

    @property
    def key_lr(self) -> float:
        """Step size of the sub-keys."""
        return self.inner_lr * self.addressing_weight
