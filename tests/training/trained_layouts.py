"""Trains a model in any layout of processes and compares it with another run: losses, norms, weights, fast weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import ParallelConfig, PretrainConfig
from tests.engines.test_engine import VOCABULARY, batches, change
from tests.training.double_precision import double_precision

STEPS = 4
APART = {"reset_attention_mask": True, "reset_position_ids": True, "eod_mask_loss": True}
SP = {"sequence_parallel": True}
ZERO = {"use_distributed_optimizer": True}
RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}

Part = tuple[tuple[int, ...], torch.Tensor]
"""A part of a tensor: where it begins in the whole one, and its numbers."""


@dataclass(frozen=True)
class Layout:
    """How a run is spread over processes; `packed` keeps documents apart in everything."""

    name: str
    processes: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    chunks: int = 1
    packed: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def replicas(self) -> int:
        return self.processes // (self.tp * self.pp * self.cp)

    @property
    def reset(self) -> str:
        """Memories carried over where one replica does all the work; others own theirs."""
        return "document" if self.packed or self.replicas > 1 else "never"

    def of(self, config: PretrainConfig, reset: str) -> PretrainConfig:
        """A configuration in this layout."""
        parallel = ParallelConfig(
            tensor_model_parallel_size=self.tp,
            pipeline_model_parallel_size=self.pp,
            context_parallel_size=self.cp,
            num_virtual_stages_per_pipeline_rank=self.chunks,
            **self.more,
        )
        config = change(change(config, "fwpkm", reset=reset), "fwmlp", reset=reset)
        config = change(change(config, "parallel", **vars(parallel)), "training", **self.training)
        if self.packed:
            config = change(config, "data", **APART)
            config = change(config, "training", micro_batch_size=2, global_batch_size=8)
        return config


def packed_batches(start: int, replica: int, replicas: int) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-batches of two sequences, where the end of a document predicts nothing.

    Positions restart within documents: at their starts they would change nothing, for rotary positions are relative.
    """
    for pair in zip(batches(start, replica, replicas), batches(start + 1000, replica, replicas), strict=True):
        both = {name: torch.cat([one[name] for one in pair]) for name in pair[0]}
        both["loss_mask"][:, :-1][both["document_starts"][:, 1:]] = 0.0
        yield both | {"position_ids": both["position_ids"] % 7}


def numbers(config: PretrainConfig, layout: Layout, *, double: bool, steps: int = STEPS) -> dict[str, Any]:
    """Losses, norms, evaluation and this rank's parts of weights and fast weights, in the running processes."""
    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    reader = packed_batches if layout.packed else batches
    with double_precision() if double else nullcontext(), megatron_run(config.parallel, config.training) as world:
        from megatron.core import parallel_state

        engine = MegatronEngine(config, VOCABULARY, world.device)
        replica = parallel_state.get_data_parallel_rank()
        source = reader(0, replica, layout.replicas)
        taken = [engine.train_step(source) for _ in range(steps)]
        evaluated = engine.evaluate(reader(100, replica, layout.replicas), 1)
        sharing = parallel_state.get_tensor_and_context_parallel_group()
        return {
            "curve": [(step.losses.loss, step.grad_norm) for step in taken],
            "evaluated": evaluated.loss,
            "weights": weight_parts(engine),
            "tables": table_parts(engine),
            "shared_by": torch.distributed.get_process_group_ranks(sharing),
        }


def weight_parts(engine: Any) -> dict[str, tuple[tuple[int, ...], list[Part]]]:
    """Slow weights by their names in checkpoints: the whole shape and the parts that this rank holds."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    from megatron_fwpkm.checkpoint.slow_weights import METADATA, unwrap

    found: dict[str, tuple[tuple[int, ...], list[Part]]] = {}
    for chunk in engine.chunks:
        state = unwrap(chunk).sharded_state_dict(metadata=dict(METADATA))  # type: ignore[operator]
        apply_factories(state)
        for part in nested_values(state):
            if isinstance(part, ShardedTensor):
                _, parts = found.setdefault(part.key, (tuple(part.global_shape), []))
                assert part.data is not None and not part.prepend_axis_num
                parts.append((tuple(part.global_offset), part.data.detach().clone()))
    return found


def table_parts(engine: Any) -> dict[tuple[int, str], tuple[int, tuple[int, ...], torch.Tensor]]:
    """Fast weights by layer and name: number of the part that this rank holds, whole shape, part."""
    return {
        (memory.layer_number, name): (memory.table_sharding.rank, memory.whole_shapes()[name], table.clone())
        for memory in engine.memories
        for name, table in memory.fast_weights().tables().items()
    }


def whole_weights(ranks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Weights put together from the parts of all ranks; what two ranks hold must be equal, bit for bit."""
    whole: dict[str, torch.Tensor] = {}
    for rank in ranks:
        for name, (shape, parts) in rank["weights"].items():
            for offset, part in parts:
                tensor = whole.setdefault(name, torch.full(shape, torch.nan, dtype=part.dtype))
                place = tensor[tuple(slice(at, at + size) for at, size in zip(offset, part.shape, strict=True))]
                assert bool(place.isnan().all()) or torch.equal(place, part), f"{name} differs between ranks"
                place.copy_(part)
    assert [name for name, tensor in whole.items() if tensor.isnan().any()] == []
    return whole


def whole_table(key: tuple[int, str], ranks: list[dict[str, Any]]) -> torch.Tensor:
    """A table put together from the parts of the ranks that share a memory."""
    parts = [table for *_, table in sorted((rank["tables"][key] for rank in ranks), key=lambda part: part[0])]
    whole = ranks[0]["tables"][key][1]
    for axis, size in enumerate(whole):
        if parts[0].shape[axis] < size:
            return torch.cat(parts, axis)
    assert all(torch.equal(part, parts[0]) for part in parts)
    return parts[0]


def check_curves(
    where: str,
    ranks: list[dict[str, Any]],
    expected: dict[str, Any],
    tolerance: float,
    norms: int,
    norm_tolerance: float | None = None,
) -> None:
    """Losses, the first `norms` gradient norms and the evaluation of every rank are the expected ones.

    Norms may have a tolerance of their own.
    """
    of_norms = tolerance if norm_tolerance is None else norm_tolerance
    for number, found in enumerate(ranks):
        here = f"{where}, rank {number}"
        for step, (mine, right) in enumerate(zip(found["curve"], expected["curve"], strict=True)):
            assert mine[0] == pytest.approx(right[0], rel=tolerance), f"{here}, step {step}: loss"
            if step < norms:
                assert mine[1] == pytest.approx(right[1], rel=of_norms), f"{here}, step {step}: gradient norm"
        assert found["evaluated"] == pytest.approx(expected["evaluated"], rel=tolerance), here


def check_weights(where: str, ranks: list[dict[str, Any]], expected: dict[str, Any], tolerance: float) -> None:
    """Weights after the last step; steps move them by about 1e-2, which sets the scale of those that are nearly 0."""
    found, right = whole_weights(ranks), whole_weights([expected])
    assert found.keys() == right.keys()
    for name, tensor in found.items():
        _assert_close(f"{where}, {name}", tensor, right[name], tolerance)


def check_tables(where: str, ranks: list[dict[str, Any]], expected: dict[str, Any], tolerance: float) -> None:
    """Fast weights after the last step, of every group of ranks that shares a memory."""
    for found in ranks:
        for key in found["tables"]:
            table = whole_table(key, [ranks[other] for other in found["shared_by"]])
            _assert_close(f"{where}, {key}", table, expected["tables"][key][2], tolerance)


def _assert_close(where: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{where}: {text}")
