"""The numbers and choices of a fast-weight MLP, in one object that travels whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..option_checks import check_option_ranges, check_stream_numbers, options_by_name

WHOLE_NUMBERS = {"chunk_size": 1, "lookahead": 0}
"""Options that are integers, and the smallest each may be."""
STEP_SIZES = {"inner_lr": 100}
"""Options that are numbers from 0, which switches something off, and the largest each may be."""
CHOICES = {"boundary": ("drop", "carry"), "write_scale": ("consistent", "official")}
"""Options that are words, and the words each may be."""


@dataclass(frozen=True)
class FastMLPOptions:
    """What defines the reads and writes of a fast-weight MLP; checked when it is made.

    Attributes:
        chunk_size: tokens per write and sequence.
        lookahead: a token's target is the mean of its own value and of those of so many tokens after it; at least 0,
            and below `chunk_size` where the last tokens of a chunk are not written.
        inner_lr: step size of a write; 0 freezes the weights (pending tokens are still kept up).
        boundary: `drop`: the last `lookahead` tokens of a chunk are never written. `carry`: they wait in
            `state.pending` and the result does not depend on how a text is cut into calls.
        write_scale: `consistent`, or `official` for the authors' streaming arithmetic (`carry` only).

    Raises:
        ValueError: an option is out of its range, or two do not go together.
    """

    chunk_size: int
    lookahead: int = 1
    inner_lr: float = 0.1
    boundary: str = "drop"
    write_scale: str = "consistent"

    def __post_init__(self) -> None:
        check_option_ranges(self, WHOLE_NUMBERS, STEP_SIZES, CHOICES)
        check_stream_numbers(self)

    @classmethod
    def of(cls, config: Any, prefix: str = "", **given: Any) -> FastMLPOptions:
        """The options of a configuration; the names of its attributes begin with `prefix` (`options_by_name`)."""
        return options_by_name(cls, config, prefix, **given)
