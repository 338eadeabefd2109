"""Small models and memories for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_fwpkm.hf import FwPKMForCausalLM, FwPKMHFConfig
from megatron_fwpkm.hf.memory import LayerMemory
from megatron_fwpkm.ops import FastWeightState, MemoryOptions

VOCABULARY = 64


def small_config(**changes: Any) -> FwPKMHFConfig:
    """Two layers, the second with a memory of 64 slots; chunks of 8, window of 6."""
    values: dict[str, Any] = dict(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, attention_windows=[6, 6], partial_rotary_factor=0.5, fwpkm_layers=[1],
        fwpkm_num_subkeys=8, fwpkm_key_dim=8, fwpkm_value_dim=12, fwpkm_topk=3, fwpkm_chunk_size=8, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return FwPKMHFConfig(**(values | changes))


def small_model(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> FwPKMForCausalLM:
    """A random model whose memory matters: weights are larger than a real initialisation's."""
    torch.manual_seed(seed)
    model = FwPKMForCausalLM(small_config(**changes)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def token_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random tokens that are never a special one."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text on their way into a memory, each [B, T, ...]."""

    queries: Tensor
    targets: Tensor
    gates: Tensor | None
    mask: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """Apply a function to every field that is there."""
        optional = (None if field is None else function(field) for field in (self.gates, self.mask))
        return Tokens(function(self.queries), function(self.targets), *optional)

    def cut(self, start: int, stop: int | None = None) -> Tokens:
        """The tokens [start, stop) of every sequence."""
        return self.map(lambda field: field[:, start:stop])

    def into(self, memory: LayerMemory, mode: str = "on") -> Tensor:
        """What they retrieve from a memory."""
        return memory.step(self.queries, self.targets, self.gates, self.mask, mode)


def layer_memory(sub_keys: Tensor, values: Tensor, options: MemoryOptions) -> LayerMemory:
    """A memory at the beginning of a text."""
    return LayerMemory(FastWeightState(sub_keys, values), options)


def memory_inputs(
    options: MemoryOptions,
    *,
    batch: int = 2,
    tokens: int = 45,
    heads: int = 2,
    masked: bool = False,
    gated: bool = True,
) -> tuple[Tokens, Tensor, Tensor]:
    """Random tokens and tables in float64."""
    generator = torch.Generator().manual_seed(heads + tokens + options.lookahead)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    gates = torch.sigmoid(draw(batch, tokens)) if gated else None
    mask = (draw(batch, tokens) > -0.5).double() if masked else None
    stream = Tokens(draw(batch, tokens, heads, 8), draw(batch, tokens, 5), gates, mask)
    return stream, 0.3 * draw(heads, 2, 9, 4), draw(81, 5)
