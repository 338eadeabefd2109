"""Random memories and token streams, and what one call makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megatron_fwpkm.ops import FastWeightOutput, FastWeightState, PendingTokens, fast_weight_memory


@dataclass
class Case:
    """Inputs of one call. `options` are keyword arguments of `fast_weight_memory`."""

    queries: Tensor
    targets: Tensor
    gates: Tensor | None
    mask: Tensor | None
    state: FastWeightState
    options: dict[str, Any]

    def leaves(self) -> dict[str, Tensor]:
        """Differentiable inputs by name."""
        found = {
            "queries": self.queries,
            "targets": self.targets,
            "sub_keys": self.state.sub_keys,
            "values": self.state.values,
        }
        return found if self.gates is None else {**found, "gates": self.gates}

    def requires_grad(self) -> Case:
        """The same case with all differentiable inputs as fresh leaves."""
        fresh = {name: leaf.detach().clone().requires_grad_() for name, leaf in self.leaves().items()}
        state = replace(self.state, sub_keys=fresh["sub_keys"], values=fresh["values"])
        return Case(fresh["queries"], fresh["targets"], fresh.get("gates"), self.mask, state, self.options)

    def run(self, **changes: Any) -> FastWeightOutput:
        """Call the functional form."""
        options = {**self.options, **changes}
        return fast_weight_memory(self.queries, self.targets, self.gates, self.state, mask=self.mask, **options)


def make_case(
    seed: int = 0,
    *,
    batch: int = 2,
    tokens: int = 23,
    heads: int = 2,
    topk: int = 3,
    num_subkeys: int = 5,
    key_dim: int = 6,
    value_dim: int = 4,
    gated: bool = True,
    masked: bool = False,
    num_pending: int = 0,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Case:
    """Draw a case; every option not named here goes to `fast_weight_memory`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def gates_and_mask(length: int) -> tuple[Tensor | None, Tensor | None]:
        gates = torch.rand(batch, length, generator=generator, dtype=torch.float64).to(dtype)
        mask = (torch.rand(batch, length, generator=generator) < 0.7).long()
        return gates if gated else None, mask if masked else None

    state = FastWeightState(draw(heads, 2, num_subkeys, key_dim // 2), draw(num_subkeys**2, value_dim))
    if num_pending:
        queries, targets = draw(batch, num_pending, heads, key_dim), draw(batch, num_pending, value_dim)
        gates, mask = gates_and_mask(num_pending)
        pending = PendingTokens(queries, targets, gates, mask if mask is None else mask.to(dtype))
        state = FastWeightState(state.sub_keys, state.values, pending)
    queries, targets = draw(batch, tokens, heads, key_dim), draw(batch, tokens, value_dim)
    gates, mask = gates_and_mask(tokens)
    return Case(queries, targets, gates, mask, state, {"topk": topk, "chunk_size": 8, **options})


def gradients(case: Case, **changes: Any) -> tuple[FastWeightOutput, dict[str, Tensor]]:
    """Run a case and differentiate a fixed random function of all its differentiable outputs."""
    case = case.requires_grad()
    output = case.run(**changes)
    generator = torch.Generator().manual_seed(99)
    loss = output.retrieved.new_zeros(())
    for tensor in (output.retrieved, output.slot_weights):
        loss = loss + (tensor * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)).sum()
    if not loss.requires_grad:
        return output, {name: torch.zeros_like(leaf) for name, leaf in case.leaves().items()}
    leaves = case.leaves()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    filled = (torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves.values(), found, strict=True))
    return output, dict(zip(leaves, filled, strict=True))


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected entry (absolute where all are below 1e-3)."""
    assert actual.shape == expected.shape, f"{list(actual.shape)} is not {list(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    scale = max(expected.abs().max().item(), 1e-3)
    return (actual.detach().to(torch.float64) - expected.detach().to(torch.float64)).abs().max().item() / scale


def assert_same(actual: FastWeightOutput, expected: FastWeightOutput, tolerance: float) -> None:
    """Compare everything two calls return."""
    assert torch.equal(actual.slot_indices, expected.slot_indices)
    for name in ("retrieved", "slot_weights", "memorization_loss", "addressing_loss"):
        assert distance(getattr(actual, name), getattr(expected, name)) <= tolerance, name
    for name in ("sub_keys", "values"):
        assert distance(getattr(actual.state, name), getattr(expected.state, name)) <= tolerance, name
    assert_same_pending(actual.state.pending, expected.state.pending)


def assert_same_pending(actual: PendingTokens | None, expected: PendingTokens | None) -> None:
    """Pending tokens are copies of inputs: equal bit for bit."""
    assert (actual is None) == (expected is None)
    if actual is None or expected is None:
        return
    assert torch.equal(actual.queries, expected.queries) and torch.equal(actual.targets, expected.targets)
    for one, other in ((actual.gates, expected.gates), (actual.mask, expected.mask)):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)
