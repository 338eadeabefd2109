"""Documents that stand one after another in a sequence."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor


def document_lengths(starts: Tensor) -> list[list[int]]:
    """Tokens of the consecutive documents of every sequence.

    Args:
        starts: [b, s] bool, True at the first token of a document; the first token of a sequence always is one.
    """
    edges = [
        [0, *(position for position in row.nonzero().flatten().tolist() if position), len(row)] for row in starts.cpu()
    ]
    return [[stop - start for start, stop in pairwise(row)] for row in edges]
