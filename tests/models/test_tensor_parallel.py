"""A model on two tensor-parallel ranks computes what it computes on one: losses, gradients, fast weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed import run_distributed
from tests.layers.megatron import VOCABULARY, batch, initialize, tiny

_STEPS = 2
_TOLERANCE = 1e-5  # relative, float32


def _train(rank: int, world_size: int, options: dict[str, Any]) -> dict[str, Any]:
    """Two steps of gradient descent; returns losses, this rank's gradients of the last step and its tables."""
    initialize(tensor_parallel=world_size)
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    from megatron_fwpkm.models.builder import build_model, memory_layers

    model = build_model(tiny(**options), VOCABULARY)
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    losses = []
    for step in range(_STEPS):
        wrapped.zero_grad_buffer()
        tokens, positions, labels = batch(seed=step)
        starts = torch.zeros(tokens.shape, dtype=torch.bool)
        starts[0, 20] = starts[1, 33] = True
        model.set_document_starts(starts)
        loss = wrapped(tokens, positions, None, labels=labels).mean()
        loss.backward()
        finalize_model_grads([wrapped])
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.3 * parameter.main_grad
    gradients = {
        name: (p.main_grad.clone(), p.partition_dim if getattr(p, "tensor_model_parallel", False) else None)
        for name, p in model.named_parameters()
    }
    tables = {m.layer_number: (m.sub_keys.clone(), m.values.clone()) for m in memory_layers(model)}
    return {"losses": losses, "gradients": gradients, "tables": tables}


def _whole(name: str, shards: list[torch.Tensor], dimension: int | None) -> torch.Tensor:
    """Put the parts of a parameter together; replicated ones must be equal."""
    if dimension is None:
        for shard in shards[1:]:
            torch.testing.assert_close(shard, shards[0], rtol=0, atol=0, msg=f"{name} differs between ranks")
        return shards[0]
    if "linear_fc1" in name:  # gate and up half of every rank
        halves = zip(*(shard.chunk(2) for shard in shards), strict=True)
        return torch.cat([torch.cat(half) for half in halves])
    return torch.cat(shards, dim=dimension)


def _assert_close(name: str, ours: torch.Tensor, expected: torch.Tensor, scale: float = 0.0) -> None:
    difference, scale = (ours - expected).abs().max().item(), max(scale, expected.abs().max().item())
    assert difference <= _TOLERANCE * scale, f"{name} differs by {difference:.1e} at scale {scale:.1e}"


def _train_all(rank: int, world_size: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_train(rank, world_size, options) for options in cases]


_MEMORIES: dict[str, dict[str, Any]] = {
    "carried": {},
    "document": {"reset": "document"},
    "several heads, no gate": {"gate": False, "num_heads": 2, "boundary": "carry"},
}
_CASES = [(name, sequence_parallel) for name in _MEMORIES for sequence_parallel in (False, True)]


@pytest.fixture(scope="module")
def serial() -> dict[str, dict[str, Any]]:
    """What one process computes."""
    return {name: _train(0, 1, options) for name, options in _MEMORIES.items()}


@pytest.fixture(scope="module")
def parallel() -> dict[tuple[str, bool], list[dict[str, Any]]]:
    """What two ranks compute, by rank."""
    options = [{**_MEMORIES[name], "sequence_parallel": sequence_parallel} for name, sequence_parallel in _CASES]
    by_rank = run_distributed(_train_all, 2, options, timeout=100)
    return dict(zip(_CASES, (list(ranks) for ranks in zip(*by_rank, strict=True)), strict=True))


@pytest.mark.parametrize(("name", "sequence_parallel"), _CASES)
def test_two_ranks_equal_one(serial: Any, parallel: Any, name: str, sequence_parallel: bool) -> None:
    expected, ranks = serial[name], parallel[name, sequence_parallel]
    assert ranks[0]["losses"] == ranks[1]["losses"]
    assert ranks[0]["losses"] == pytest.approx(expected["losses"], rel=_TOLERANCE)
    assert ranks[0]["gradients"].keys() == expected["gradients"].keys()
    for parameter, (gradient, dimension) in expected["gradients"].items():
        shards = [rank["gradients"][parameter][0] for rank in ranks]
        whole = _whole(parameter, shards, ranks[0]["gradients"][parameter][1])
        # A bias sums what its weight weighs, and may nearly cancel: the weight sets the scale of its roundings.
        weight = expected["gradients"][parameter.replace(".bias", ".weight")][0]
        _assert_close(f"gradient of {parameter}", whole, gradient, weight.abs().max().item())
        assert dimension is None or ranks[0]["gradients"][parameter][1] == dimension
    for layer, (sub_keys, values) in expected["tables"].items():
        assert torch.equal(ranks[0]["tables"][layer][0], ranks[1]["tables"][layer][0]), "sub-keys drift apart"
        _assert_close("sub_keys", ranks[0]["tables"][layer][0], sub_keys)
        _assert_close("values", torch.cat([rank["tables"][layer][1] for rank in ranks], dim=1), values)
