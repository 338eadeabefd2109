"""Random inputs of the gated delta rule and of the whole net."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_fwpkm.ops.gated_delta_net.delta_net import DeltaNetWeights, head_channels, normalized


@dataclass(frozen=True)
class RuleCase:
    """Inputs of one call of the rule."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    log_decays: Tensor
    strengths: Tensor
    state: Tensor | None
    starts: Tensor | None

    def inputs(self) -> tuple[Tensor | None, ...]:
        """In the order of the arguments."""
        return (self.queries, self.keys, self.values, self.log_decays, self.strengths, self.state, self.starts)

    def part(self, start: int, stop: int, state: Tensor | None) -> RuleCase:
        """Some of the tokens, after others."""
        tokens = {name: getattr(self, name)[:, start:stop]
                  for name in ("queries", "keys", "values", "log_decays", "strengths")}  # fmt: skip
        starts = None if self.starts is None else self.starts[:, start:stop]
        return replace(self, **tokens, state=state, starts=starts)


def rule_case(
    seed: int = 0,
    *,
    tokens: int = 23,
    batch: int = 2,
    key_heads: int = 2,
    repeats: int = 1,
    key_width: int = 5,
    value_width: int = 3,
    with_state: bool = True,
    documents: bool = False,
    decay: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> RuleCase:
    """Draw a case; log-decays are about `-decay`, of which a few are a hundred times that."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    heads = key_heads * repeats
    strong = torch.rand(batch, tokens, heads, generator=generator) < 0.1
    rates = decay * draw(batch, tokens, heads).abs()
    starts = torch.rand(batch, tokens, generator=generator) < 0.1
    floats = (
        normalized(draw(batch, tokens, key_heads, key_width)),
        normalized(draw(batch, tokens, key_heads, key_width)),
        draw(batch, tokens, heads, value_width),
        -torch.where(strong, 100 * rates, rates),
        torch.sigmoid(draw(batch, tokens, heads)),
    )
    state = draw(batch, heads, key_width, value_width).to(dtype) if with_state else None
    return RuleCase(*(x.to(dtype) for x in floats), state, starts if documents else None)


@dataclass(frozen=True)
class NetCase:
    """Inputs of the whole net."""

    qkvz: Tensor
    ba: Tensor
    weights: DeltaNetWeights
    key_width: int = 5
    eps: float = 1e-5


def net_case(
    seed: int = 0, *, tokens: int = 23, batch: int = 2, key_heads: int = 2, repeats: int = 2, taps: int = 4
) -> NetCase:
    """Draw a case in float64 with heads of 5 and 3 numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    channels, heads = sum(head_channels(5, 3, repeats)), key_heads * repeats
    weights = DeltaNetWeights(
        draw(key_heads, channels, taps), draw(heads), torch.rand(heads, generator=generator).double().log(), draw(3)
    )
    return NetCase(
        draw(batch, tokens, key_heads, channels + repeats * 3), draw(batch, tokens, key_heads, 2 * repeats), weights
    )
