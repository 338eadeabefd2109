"""Sub-keys spread over processes by rows: who owns which, and the choice that all processes make together.

Every process keeps the topk best of its own rows (all of them where it has fewer), gathers what the others kept, and
sorts. A kept cost does not depend on the other rows, so the choice is bit for bit that of one process with all rows.

Shapes: G = heads * 2 groups, M tokens, k = topk, n sub-keys of a whole list.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..product_key.selection import KeptSubKeys, sort_key_dtype
from ..sharding import TableSharding


class Readers(NamedTuple):
    """The (token, sub-key) pairs of a piece by sub-key.

    Attributes:
        order: [G * M * k] pairs sorted by group and sub-key, tokens ascending.
        starts: [G * n + 1] where each sub-key's readers begin.
        unsearched: [G * M * k] list * n + sub-key of the sorted pairs, if the starts are not written yet.
    """

    order: Tensor
    starts: Tensor
    unsearched: Tensor | None = None


def sort_readers(indices: Tensor, num_subkeys: int) -> Readers:
    """Sort the pairs with these sub-keys [G, M, k], counted over whole lists of n; nothing waits for a device."""
    segments = indices.shape[0] * num_subkeys
    dtype = sort_key_dtype(segments)
    edges = torch.arange(segments + 1, device=indices.device, dtype=dtype)
    keys = (indices.to(dtype) + edges[:-1:num_subkeys].view(-1, 1, 1)).flatten()
    if keys.device.type == "cpu" and dtype == torch.int16:
        # On a CPU, torch has a radix sort for long lists only, and is ten times slower for short ones.
        order = torch.from_numpy(np.argsort(keys.numpy(), kind="stable"))
        return Readers(order, torch.searchsorted(keys[order], edges))
    keys, order = keys.sort(stable=True)
    return Readers(order, torch.searchsorted(keys, edges))


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

    @property
    def shared(self) -> bool:
        """Whether other processes have rows, too."""
        return self._sharding is not None

    def choose(self, proposals: list[KeptSubKeys], topk: int) -> list[KeptSubKeys]:
        """The `topk` best among the proposals of all processes, equal costs: lowest index first.

        Args:
            proposals: of pieces that are addressed with the same sub-keys; one gather serves them all.
            topk: k.

        Returns:
            Kept sub-keys of every piece, the same on all processes.
        """
        if self._sharding is None:
            return proposals
        indices = torch.cat([proposal.indices for proposal in proposals], 1)
        costs = torch.cat([proposal.costs for proposal in proposals], 1)
        bits = _BITS[costs.element_size()]
        gathered = self._sharding.gather(torch.stack([indices.to(bits), costs.view(bits)]))
        # [size, 2, G, M, kept] -> [2, G, M, size * kept]: rows ascend with the process, so a stable sort breaks ties.
        all_indices, all_costs = gathered.permute(1, 2, 3, 0, 4).flatten(3)
        best, order = all_costs.view(costs.dtype).sort(dim=-1, stable=True)
        chosen = all_indices.gather(-1, order[..., :topk]).to(indices.dtype)
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

    def sum_shards(self, x: Tensor) -> Tensor:
        """Sum over the processes of what each has from its rows; without gradient."""
        return x if self._sharding is None else self._sharding.sum_shards(x)


def only_owned(x: Tensor, foreign: Tensor | None) -> Tensor:
    """`x` [G, M, k] with 0 for pairs of other processes' rows."""
    return x if foreign is None else x.masked_fill(foreign, 0)
