"""The memory as a block of the model: projections, gate and residual around the tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..ops.fast_weight_memory.options import MemoryOptions
from ..ops.initialization import sub_key_bound, value_deviation
from ..ops.row_overlay import RowOverlay
from ..ops.state import FastWeightState
from .layer_memories import LayerMemories, each_sequence
from .memory import PRODUCT_KEYS, LayerMemory, MemoryFunctions


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), computed in float32 at least; the weight starts at 0."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(wide, wide.shape[-1:], 1 + self.weight.to(wide.dtype), self.eps).to(x.dtype)


class BlockAroundMemory(nn.Module):
    """h + Linear(RMSNorm(g * r + (1 - g) * v)), with r read for a query made from h (DESIGN 2).

    Without a gate r + v takes the place of the mixture, and every write has weight 1. A subclass brings the memory:
    its initial fast weights as buffers, which are float32 whatever the model's dtype, because most writes are lost in
    bfloat16.
    """

    table_names: tuple[str, ...]
    """Names of those buffers."""

    def __init__(self, hidden_size: int, query_width: int, value_dim: int, options: Any, *, eps: float, gate: bool,
                 gate_writes: bool, normalize_targets: bool, streaming: Any = None):  # fmt: skip
        super().__init__()
        self.options, self.normalize_targets, self.gate_writes = options, normalize_targets, gate_writes
        self.streaming = replace(options, boundary="carry") if streaming is None else streaming
        """The options of calls with a cache."""
        self.query_norm, self.query_proj = RMSNorm(hidden_size, eps), nn.Linear(hidden_size, query_width)
        self.value_norm, self.value_proj = RMSNorm(hidden_size, eps), nn.Linear(hidden_size, value_dim)
        self.gate_norm = RMSNorm(hidden_size, eps) if gate else None
        self.gate_proj = nn.Linear(hidden_size, 1) if gate else None
        self.output_norm, self.output_proj = RMSNorm(value_dim, eps), nn.Linear(value_dim, hidden_size)

    @property
    @abstractmethod
    def functions(self) -> MemoryFunctions:
        """What computes the memory."""

    @abstractmethod
    def initial(self) -> Any:
        """The memory before any write: the buffers themselves, not copies."""

    def shaped(self, queries: Tensor) -> Tensor:
        """Projected queries [B, T, width] as the memory takes them."""
        return queries

    def forward(self, hidden: Tensor, memory: LayerMemories | None = None, mode: str = "on",
                counts: Sequence[int] | None = None, shared: bool = False,
                mask: Tensor | None = None) -> Tensor:  # fmt: skip
        """Read the memory for every token, write it, and add what was read to the hidden states.

        Args:
            hidden: [B, T, hidden_size].
            memory: of this layer along the text; None reads the text as training does, from the initial memory.
            mode: one of MEMORY_MODES.
            counts: tokens of every sequence, which are its first ones; None for T.
            shared: without `memory`, whether the sequences write one memory; otherwise each has its own.
            mask: [B, T], 0 where a token of a shared text must not be written; as the reference vectors have it.

        Returns:
            [B, T, hidden_size].
        """
        queries, targets, gates = self.project(hidden)
        weights = gates if self.gate_writes else None
        if memory is not None:
            retrieved = memory.step(queries, targets, weights, counts, mode)
        elif mode == "on":
            retrieved = self._read_whole_text(queries, targets, weights, counts, shared, mask)
        else:
            retrieved = self.functions.read_only(queries, targets, self.initial(), self.options)
        mixed = targets + retrieved if gates is None else torch.lerp(targets, retrieved, gates.unsqueeze(-1))
        return hidden + self.output_proj(self.output_norm(mixed).to(hidden.dtype))

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries as the memory takes them, targets [B, T, value_dim] and gates [B, T] of hidden states."""
        dtype = getattr(self, self.table_names[-1]).dtype
        queries = self.shaped(self.query_proj(self.query_norm(hidden)).to(dtype))
        targets = self.value_proj(self.value_norm(hidden)).to(dtype)
        if self.normalize_targets:
            deviation, mean = torch.std_mean(targets, -1, keepdim=True)
            targets = (targets - mean) / (deviation + 1e-6)
        if self.gate_norm is None or self.gate_proj is None:
            return queries, targets, None
        return queries, targets, torch.sigmoid(self.gate_proj(self.gate_norm(hidden)).to(dtype)).squeeze(-1)

    def _read_whole_text(self, queries: Tensor, targets: Tensor, gates: Tensor | None,
                         counts: Sequence[int] | None, shared: bool, mask: Tensor | None) -> Tensor:  # fmt: skip
        if queries.shape[1] <= self.options.chunk_size:  # nothing reads what such a text writes at its end
            return self.functions.read_only(queries, targets, self.initial(), self.options)
        if shared or len(queries) == 1:
            return self._read_one(queries, targets, gates, mask)
        return each_sequence([self._read_one] * len(queries), queries, targets, gates, counts)

    def _read_one(
        self, queries: Tensor, targets: Tensor, gates: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """What tokens [B, T, ...] of one memory retrieve, which begins and ends with them."""
        output = self.functions.read_and_write(
            queries, targets, gates, mask, self.initial(), self.options, in_place=False
        )
        found: Tensor = output.retrieved
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BlockAroundMemory:
        """Move with the module, but never into half precision: a write rounded to bfloat16 is mostly lost."""
        tables = {name: getattr(self, name) for name in self.table_names}
        super()._apply(fn, recurse)
        for name, before in tables.items():
            after = getattr(self, name)
            if after.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, before.to(after.device, torch.float32))
        return self


class FastWeightProductKeyMemory(BlockAroundMemory):
    """The block around a product key memory.

    The buffers `sub_keys` [H, 2, n, key_dim/2] and `values` [n*n, value_dim] are the initial memory.
    """

    table_names = ("sub_keys", "values")

    sub_keys: Tensor
    values: Tensor

    def __init__(self, hidden_size: int, num_heads: int, num_subkeys: int, key_dim: int, value_dim: int,
                 options: MemoryOptions, *, eps: float = 1e-5, gate: bool = True, gate_writes: bool = True,
                 normalize_targets: bool = True, streaming: MemoryOptions | None = None):  # fmt: skip
        super().__init__(
            hidden_size, num_heads * key_dim, value_dim, options, eps=eps, gate=gate, gate_writes=gate_writes,
            normalize_targets=normalize_targets, streaming=streaming,
        )  # fmt: skip
        self.num_heads, self.key_dim = num_heads, key_dim
        self.register_buffer("sub_keys", torch.zeros(num_heads, 2, num_subkeys, key_dim // 2))
        self.register_buffer("values", torch.zeros(num_subkeys**2, value_dim))

    def init_own(self) -> None:
        """Draw the initial memory of a model that is not loaded."""
        bound = sub_key_bound(self.key_dim)
        init.uniform_(self.sub_keys, -bound, bound)
        init.normal_(self.values, 0.0, value_deviation(self.values.shape[1]))

    def initial(self) -> FastWeightState:
        """The memory before any write: the tables themselves, not copies."""
        return FastWeightState(self.sub_keys, self.values)

    def new_memory(self) -> LayerMemory:
        """The memory of one owner at the beginning of a text: rows of its own over the model's table."""
        return LayerMemory(self._overlaid(), self.streaming, source=self._overlaid)

    def _overlaid(self) -> FastWeightState:
        if self.streaming.implementation == "reference":  # which takes whole tables only
            return self.initial()
        return replace(self.initial(), overlay=RowOverlay(self.values))

    @property
    def functions(self) -> MemoryFunctions:
        """What computes the memory."""
        return PRODUCT_KEYS

    def shaped(self, queries: Tensor) -> Tensor:
        """Projected queries by head."""
        return queries.unflatten(-1, (self.num_heads, self.key_dim))
