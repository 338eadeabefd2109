"""Every replica's tables come back exactly, at the same and at another tensor- and data-parallel size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_fwpkm.checkpoint.fast_weight_store import FastWeightStore
from megatron_fwpkm.checkpoint.store_layout import stored_tensors
from megatron_fwpkm.config import FwPKMConfig
from megatron_fwpkm.engines.megatron_groups import memory_ranks
from megatron_fwpkm.ops import FastWeightState, PendingTokens
from tests.layers.megatron import initialize
from tests.spawned_ranks import run_distributed

MEMORY = FwPKMConfig(layer_numbers=(2, 3), num_heads=2, num_subkeys=4, key_dim=6, value_dim=8)


class Layer:
    """A layer that holds fast weights and nothing else."""

    def __init__(self, layer_number: int, state: FastWeightState, num_subkeys: int = MEMORY.num_subkeys) -> None:
        self.layer_number, self.state, self.num_subkeys = layer_number, state, num_subkeys

    def fast_weights(self) -> FastWeightState:
        return self.state

    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"sub_keys": (2, 2, self.num_subkeys, 3), "values": (self.num_subkeys**2, 8), "target": (8,)}

    @property
    def target_width(self) -> int:
        return self.state.values.shape[1]

    def load_fast_weights(self, state: FastWeightState) -> None:
        self.state = state

    def reset(self) -> None:
        self.state = FastWeightState(torch.zeros(2, 2, 4, 3), torch.zeros(16, 8))


def whole(layer: int, replica: int, pending: bool = True) -> FastWeightState:
    """Tables that differ by layer and replica."""
    generator = torch.Generator().manual_seed(100 * layer + replica)
    waiting = PendingTokens(
        torch.randn(1, 3, 2, 6, generator=generator), torch.randn(1, 3, 8, generator=generator), torch.rand(1, 3)
    )
    tables = torch.randn(2, 2, 4, 3, generator=generator), torch.randn(16, 8, generator=generator)
    return FastWeightState(*tables, waiting if pending and layer == 2 else None)


def cut(state: FastWeightState, rank: int, size: int) -> FastWeightState:
    """Rows of the sub-keys and columns of the values of one tensor-parallel rank."""
    pending = state.pending
    if pending is not None:
        pending = PendingTokens(pending.queries, pending.targets.chunk(size, -1)[rank], pending.gates)
    tables = state.sub_keys.chunk(size, 2)[rank].contiguous(), state.values.chunk(size, -1)[rank].contiguous()
    return FastWeightState(*tables, pending)


def start(tensor_parallel: int) -> tuple[int, int]:
    """(Re)make Megatron's groups; returns this process's tensor- and data-parallel rank."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_parallel)
    return parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_data_parallel_rank()


def save(folder: Path, tensor_parallel: int) -> None:
    tp, dp = start(tensor_parallel)
    layers = [Layer(n, cut(whole(n, dp), tp, tensor_parallel)) for n in (2, 3)]
    FastWeightStore(MEMORY, seed=5, ranks=memory_ranks()).save(folder, layers)


def load(folder: Path, tensor_parallel: int, saved_replicas: int) -> str | None:
    tp, dp = start(tensor_parallel)
    layers = [Layer(n, cut(whole(n, 99, pending=False), tp, tensor_parallel)) for n in (2, 3)]
    notice = FastWeightStore(MEMORY, seed=5, ranks=memory_ranks()).load(folder, layers)
    for layer in layers:
        expected = cut(whole(layer.layer_number, dp % saved_replicas), tp, tensor_parallel)
        assert torch.equal(layer.state.sub_keys, expected.sub_keys)
        assert torch.equal(layer.state.values, expected.values)
        assert (layer.state.pending is None) == (expected.pending is None)
        if expected.pending is not None and layer.state.pending is not None:
            assert torch.equal(layer.state.pending.queries, expected.pending.queries)
            assert torch.equal(layer.state.pending.targets, expected.pending.targets)
            assert layer.state.pending.mask is None
    return notice


def by_other_rules(folder: Path) -> None:
    """Two replicas' memories go to one replica of two tensor-parallel ranks."""
    tp, _ = start(2)
    for rule, words in (("replica0", "loads the memory of replica 0"), ("reset", "starts from the initial memory")):
        layer = Layer(2, cut(whole(2, 99, pending=False), tp, 2))
        notice = FastWeightStore(replace(MEMORY, load_dp_rule=rule), seed=5, ranks=memory_ranks()).load(folder, [layer])
        assert notice == f"the number of replicas changed from 2 to 1: every replica {words}"
        expected = cut(whole(2, 0), tp, 2).values if rule == "replica0" else torch.zeros(16, 8)
        assert torch.equal(layer.state.values, expected)


def save_and_load_elsewhere(rank: int, world_size: int, folder: Path) -> list[str | None]:
    """TP2 to two replicas and back, in one set of processes."""
    from megatron_fwpkm.distributed import megatron_on_cpu

    megatron_on_cpu.install()
    save(folder / "tp2", 2)
    save(folder / "dp2", 1)
    by_other_rules(folder / "dp2")
    return [
        load(folder / "tp2", 2, 1),
        load(folder / "tp2", 1, 1),
        load(folder / "dp2", 1, 2),
        load(folder / "dp2", 2, 2),
    ]


def test_tables_move_between_layouts_exactly(tmp_path: Path) -> None:
    notices = run_distributed(save_and_load_elsewhere, 2, tmp_path)
    assert (
        notices[0]
        == notices[1]
        == [
            None,
            "the number of replicas changed from 1 to 2: replica r loads the saved memory r modulo 1",
            None,
            "the number of replicas changed from 2 to 1: replica r loads the saved memory r modulo 2",
        ]
    )
    description = json.loads((tmp_path / "tp2" / "store.json").read_text())
    assert description == {
        "replicas": 1,
        "tensor_parallel": 2,
        "initial_memory_seed": 5,
        "saved_replicas": [0],
        "replicas_equal": False,
    }
    stored = stored_tensors(tmp_path / "tp2")
    assert stored["layer2/replica0/values"].size == torch.Size([16, 8])
    assert stored["layer2/replica0/sub_keys"].size == torch.Size([2, 2, 4, 3])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    initialize()
    store = FastWeightStore(MEMORY, seed=5, ranks=memory_ranks())
    store.save(tmp_path / "fast", [Layer(2, whole(2, 0))])
    again = Layer(2, whole(2, 1, pending=False))
    assert store.load(tmp_path / "fast", [again]) is None
    assert torch.equal(again.state.values, whole(2, 0).values)
    with pytest.raises(ValueError, match="fast contains no memory for layer 3"):
        store.load(tmp_path / "fast", [Layer(3, whole(3, 0))])
    small = FwPKMConfig(num_heads=2, num_subkeys=2, key_dim=6, value_dim=8)
    state = FastWeightState(torch.zeros(2, 2, 2, 3), torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"layer2/replica0/.* has shape .*, but the model needs .*--fwpkm-num-subkeys"):
        FastWeightStore(small, seed=5, ranks=memory_ranks()).load(tmp_path / "fast", [Layer(2, state, num_subkeys=2)])
    with pytest.raises(ValueError, match="nothing contains no saved tensors"):
        store.load(tmp_path / "nothing", [again])
