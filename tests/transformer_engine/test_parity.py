"""Layers of Transformer Engine compute what local ones do; each goes on from a checkpoint of the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import ParallelConfig, PKMConfig
from tests.spawned_ranks import run_distributed
from tests.transformer_engine.pretended import needs_sources
from tests.transformer_engine.runs import IMPLEMENTATIONS, SMALL, attention, training

pytestmark = needs_sources

FOUR_LAYERS = replace(SMALL.model, num_layers=4, layer_pattern="swa:5,fa,swa:9,fa", attention_output_gate=True)
STATIC_MEMORY = PKMConfig(layer_numbers=(1, 3), num_heads=2, num_subkeys=8, key_dim=16, value_dim=16, topk=4)

LAYOUTS = {
    "one process": ParallelConfig(use_distributed_optimizer=True),
    "TP 2 with sequence parallelism": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "PP 2": ParallelConfig(pipeline_model_parallel_size=2),
}
SLOW = ("TP 2 with sequence parallelism", "PP 2")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LAYOUTS]
)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank saw in one layout."""
    parallel, folder = LAYOUTS[request.param], tmp_path_factory.mktemp("checkpoints")
    size = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    groups = {"model": FOUR_LAYERS, "pkm": STATIC_MEMORY}
    return run_distributed(training, size, parallel, Path(folder), groups, timeout=280)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the whole tensor."""
    return ((one - other).norm() / other.norm().clamp(min=1e-12)).item()


def test_both_begin_with_the_same_weights(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        local, engine = (rank["seen"][name]["begins with"] for name in IMPLEMENTATIONS)
        assert local.keys() == engine.keys()
        assert [name for name in local if not torch.equal(local[name], engine[name])] == []


def test_the_kernels_are_those_of_the_implementation(ranks: list[dict[str, Any]]) -> None:
    local, engine = (ranks[0]["seen"][name]["kernels"] for name in IMPLEMENTATIONS)
    assert local == []
    assert engine == ["fused_rope_backward", "fused_rope_forward", "generic_gemm", "rmsnorm_bwd", "rmsnorm_fwd"]


def test_losses_and_gradients_agree(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        local, engine = (rank["seen"][name] for name in IMPLEMENTATIONS)
        for ours, theirs in zip(engine["steps"], local["steps"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        differences = {n: _difference(engine["gradients"][n], local["gradients"][n]) for n in local["gradients"]}
        assert max(differences.values()) < 3e-6, sorted(differences.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_other_implementation_goes_on_from_a_checkpoint(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        moved = rank["moved"][name]
        (weights, moments, tables), (loaded_weights, loaded_moments, loaded_tables) = moved["saved"], moved["loaded"]
        assert weights.keys() == loaded_weights.keys() and moments.keys() == loaded_moments.keys() == weights.keys()
        assert [key for key in weights if not torch.equal(weights[key], loaded_weights[key])] == []
        for key, states in moments.items():
            assert states.keys() == loaded_moments[key].keys() and states, key
            assert all(torch.equal(state, loaded_moments[key][part]) for part, state in states.items()), key
        assert all(torch.equal(one, other) for one, other in zip(tables, loaded_tables, strict=True))
        same, other = moved["goes on"]
        assert other == pytest.approx(same, rel=1e-5)


def test_attention_of_transformer_engine_has_the_windows_of_the_layers() -> None:
    """Its kernel in torch, which needs neither flash-attn nor cuDNN; with full attention and with windows."""
    (found,) = run_distributed(attention, 1, timeout=200)
    assert found["local"]["kinds"] == {"WindowedAttention"} and found["te"]["kinds"] == {"TEDotProductAttention"}
    assert found["te"]["windows"] == [(5, 0), (-1, 0), (9, 0)]
    assert found["te"]["step"] == pytest.approx(found["local"]["step"], rel=1e-5)
    ours, theirs = found["local"]["gradients"], found["te"]["gradients"]
    assert max(_difference(theirs[name], ours[name]) for name in ours) < 5e-6
