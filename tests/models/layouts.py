"""Trains the same small model in any tensor- and context-parallel layout, and compares what comes out.

In float64: in float32 one near tie in a selection, which falls differently on another CPU, grows into another run.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.layers.megatron import VOCABULARY, batch, initialize, tiny
from tests.training.double_precision import double_precision

TOLERANCE = 1e-10  # relative


@double_precision()
def train(
    rank: int, world_size: int, options: dict[str, Any], steps: int = 2, context_parallel: int = 1
) -> dict[str, Any]:
    """Some steps of gradient descent; returns losses, this rank's gradients of the last step and its tables."""
    initialize(world_size // context_parallel, context_parallel)
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    from megatron_fwpkm.distributed.megatron_versions import part_of_context_rank
    from megatron_fwpkm.models.builder import build_model, memory_layers

    config = tiny(**options)
    model = build_model(config, VOCABULARY)
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    losses, hashes = [], []
    for step in range(steps):
        wrapped.zero_grad_buffer()
        tokens, positions, labels = batch(seed=step)
        starts = torch.zeros(tokens.shape, dtype=torch.bool)
        starts[0, 20] = starts[1, 33] = True
        model.set_document_starts(starts)
        if config.data.reset_position_ids:
            positions = positions - torch.where(starts, positions, 0).cummax(dim=1).values
        documents = starts if config.data.reset_attention_mask else None
        mine = part_of_context_rank({"tokens": tokens, "positions": positions, "labels": labels})
        token_losses = wrapped(mine["tokens"], mine["positions"], documents, labels=mine["labels"])
        loss = token_losses.sum() / labels.numel()
        # Data-parallel gradients are means over the ranks, context-parallel ones among them.
        (loss * context_parallel).backward()
        finalize_model_grads([wrapped])
        losses.append(_sum_over_context(loss.detach(), context_parallel).item())
        hashes.append([memory.consistency_hash().item() for memory in memory_layers(model)])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.3 * parameter.main_grad
    gradients = {
        name: (p.main_grad.clone(), p.partition_dim if getattr(p, "tensor_model_parallel", False) else None)
        for name, p in model.named_parameters()
    }
    assert all(weight.dtype == torch.float64 for weight in model.parameters())
    tables = {m.layer_number: _tables(m) for m in memory_layers(model)}
    return {"losses": losses, "gradients": gradients, "tables": tables, "hashes": hashes}


def _tables(memory: Any) -> dict[str, Any]:
    """Fast weights by name with the dimension in which ranks cut them, and the number of this rank's `part`."""
    found: dict[str, Any] = {"part": memory.table_sharding.rank}
    whole = memory.whole_shapes()
    for name, table in memory.fast_weights().tables().items():
        cut = [axis for axis, size in enumerate(table.shape) if size != whole[name][axis]]
        found[name] = table.detach().clone(), cut[0] if cut else None
    return found


def train_all(rank: int, world_size: int, cases: list[tuple[dict[str, Any], int, int]]) -> list[dict[str, Any]]:
    """Train every (options, steps, context-parallel size) in one start of the processes."""
    from megatron.core import parallel_state

    results = []
    for case in cases:
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        results.append(train(rank, world_size, *case))
    return results


def _sum_over_context(loss: torch.Tensor, size: int) -> torch.Tensor:
    from megatron.core import parallel_state

    if size > 1:
        torch.distributed.all_reduce(loss, group=parallel_state.get_context_parallel_group())
    return loss


def _whole(name: str, shards: list[torch.Tensor], dimension: int | None) -> torch.Tensor:
    """Put the parts of a parameter together; replicated ones must be equal."""
    if dimension is None:
        _assert_equal(name, shards)
        return shards[0]
    if "linear_fc1" in name:  # gate and up half of every rank
        halves = zip(*(shard.chunk(2) for shard in shards), strict=True)
        return torch.cat([torch.cat(half) for half in halves])
    return torch.cat(shards, dim=dimension)


def _assert_equal(name: str, copies: list[torch.Tensor]) -> None:
    for copy in copies[1:]:
        torch.testing.assert_close(copy, copies[0], rtol=0, atol=0, msg=f"{name} differs between ranks")


def _assert_close(name: str, ours: torch.Tensor, expected: torch.Tensor, scale: float = 0.0) -> None:
    difference, scale = (ours - expected).abs().max().item(), max(scale, expected.abs().max().item())
    assert difference <= TOLERANCE * scale, f"{name} differs by {difference:.1e} at scale {scale:.1e}"


def assert_same_training(ranks: list[dict[str, Any]], expected: dict[str, Any], context_parallel: int = 1) -> None:
    """What the ranks computed together is what one process computed: losses, gradients, tables."""
    tensor_parallel = len(ranks) // context_parallel  # these are numbered first
    for rank in ranks:
        assert rank["losses"] == ranks[0]["losses"]
        assert rank["hashes"] == ranks[0]["hashes"], "ranks chose differently"
    assert all(
        abs(ours - theirs) <= TOLERANCE * abs(theirs)
        for ours, theirs in zip(ranks[0]["losses"], expected["losses"], strict=True)
    ), (ranks[0]["losses"], expected["losses"])
    assert ranks[0]["gradients"].keys() == expected["gradients"].keys()
    for parameter, (gradient, dimension) in expected["gradients"].items():
        shards = [rank["gradients"][parameter][0] for rank in ranks]
        for number in range(tensor_parallel):
            _assert_equal(parameter, shards[number::tensor_parallel])
        sharded = ranks[0]["gradients"][parameter][1]
        whole = _whole(parameter, shards[:tensor_parallel], sharded)
        # A bias sums what its weight weighs, and may nearly cancel: the weight sets the scale of its roundings.
        weight = expected["gradients"][parameter.replace(".bias", ".weight")][0]
        _assert_close(f"gradient of {parameter}", whole, gradient, weight.abs().max().item())
        assert dimension is None or sharded == dimension
    for layer, whole in expected["tables"].items():
        tables = [rank["tables"][layer] for rank in sorted(ranks, key=lambda rank: rank["tables"][layer]["part"])]
        assert len({table["part"] for table in tables}) == len(tables)
        for name in whole.keys() - {"part"}:
            copies = [table[name][0] for table in tables]
            dimension = tables[0][name][1]
            if dimension is None:
                _assert_equal(name, copies)
            _assert_close(name, copies[0] if dimension is None else torch.cat(copies, dimension), whole[name][0])
