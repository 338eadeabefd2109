"""Sub-keys spread over processes by rows: who owns which, and the choice that all processes make together.

Every process keeps the topk best of its own rows (all of them where it has fewer), gathers what the others kept, and
sorts. A kept cost does not depend on the other rows, so the choice is bit for bit that of one process with all rows.

Shapes: G = heads * 2 groups, M tokens, k = topk, n sub-keys of a whole list.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..product_key.selection import KeptSubKeys, select_sub_keys
from ..sharding import TableSharding
from .sparse.row_sums import segment_starts

_BITS = {4: torch.int32, 8: torch.int64}
"""Whole numbers as wide as a cost, by bytes: a cost and an index travel in one tensor."""


class KeyRows:
    """This process's rows of every list of sub-keys; all of them without sharding.

    Attributes:
        count: rows of a list here.
        first: number of the first of them.
        num_subkeys: n, rows of a whole list.

    Args:
        count: rows of a list here, the same on all processes.
        sharding: how the rows are spread; None when they are all here.
    """

    def __init__(self, count: int, sharding: TableSharding | None) -> None:
        self._sharding = sharding
        self.count = count
        self.first = 0 if sharding is None else sharding.rank * count
        self.num_subkeys = count if sharding is None else sharding.size * count

    def propose(self, queries: Tensor, sub_keys: Tensor, topk: int, score: str) -> KeptSubKeys:
        """The best of the rows here for queries [G, M, h], at most ``topk``; indices count over the whole list."""
        kept = select_sub_keys(queries, sub_keys, min(topk, self.count), score)
        return kept._replace(indices=kept.indices + self.first) if self.first else kept

    def choose(self, proposals: list[KeptSubKeys], topk: int) -> list[KeptSubKeys]:
        """The ``topk`` best among the proposals of all processes, equal costs: lowest index first.

        Args:
            proposals: of pieces that are addressed with the same sub-keys; one gather serves them all.
            topk: k.

        Returns:
            Kept sub-keys of every piece, the same on all processes.
        """
        if self._sharding is None:
            return proposals
        indices, costs = (torch.cat(tensors, 1) for tensors in zip(*proposals, strict=True))
        bits = _BITS[costs.element_size()]
        gathered = self._sharding.gather(torch.stack([indices.to(bits), costs.view(bits)]))
        # [size, 2, G, M, kept] -> [2, G, M, size * kept]: rows ascend with the process, so a stable sort breaks ties.
        all_indices, all_costs = gathered.permute(1, 2, 3, 0, 4).flatten(3)
        best, order = all_costs.view(costs.dtype).sort(dim=-1, stable=True)
        chosen = all_indices.gather(-1, order[..., :topk]).long()
        lengths = [proposal.costs.shape[1] for proposal in proposals]
        parts = zip(chosen.split(lengths, 1), best[..., :topk].split(lengths, 1), strict=True)
        return [KeptSubKeys(*(part.contiguous() for part in both)) for both in parts]

    def local(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Where chosen sub-keys stand among the rows here.

        Args:
            indices: [G, M, k], counted over the whole list.

        Returns:
            Positions [G, M, k], and which of them mean nothing because another process owns the row (bool, or None
            when all rows are here). Those point at a row that exists.
        """
        if self._sharding is None:
            return indices, None
        positions = indices - self.first
        foreign = (positions < 0) | (positions >= self.count)
        return positions.masked_fill(foreign, 0), foreign

    def sort_pairs(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The (token, sub-key) pairs of the rows here, sorted by row, tokens ascending within a row.

        Args:
            indices: [G, M, k], counted over the whole list.

        Returns:
            Positions of the pairs in the flattened ``indices``, and the first pair of every row, [G * count].
        """
        groups, num_rows = indices.shape[0], indices.shape[0] * self.count
        positions, foreign = self.local(indices)
        rows = positions + torch.arange(0, num_rows, self.count, device=indices.device).view(groups, 1, 1)
        if foreign is None:
            ordered, order = rows.flatten().sort(stable=True)
            return order, segment_starts(ordered, num_rows)
        ordered, order = rows.masked_fill(foreign, num_rows).flatten().sort(stable=True)
        starts = segment_starts(ordered, num_rows + 1)
        return order[: int(starts[-1])], starts[:-1]

    def sum_owned(self, x: Tensor, foreign: Tensor | None) -> Tensor:
        """Figures of pairs [G, M, k], each known to the owner of its row, on all processes. One sum."""
        return self.sum_shards(only_owned(x, foreign))

    def sum_shards(self, x: Tensor) -> Tensor:
        """Sum over the processes of what each has from its rows; without gradient."""
        return x if self._sharding is None else self._sharding.sum_shards(x)


def only_owned(x: Tensor, foreign: Tensor | None) -> Tensor:
    """``x`` [G, M, k] with 0 for pairs of other processes' rows."""
    return x if foreign is None else x.masked_fill(foreign, 0)
