"""FP8 reaches the linear layers of Transformer Engine with its options, and nothing else; it resumes and recomputes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_fwpkm.config import ParallelConfig
from tests.spawned_ranks import run_distributed
from tests.transformer_engine import fp8_runs
from tests.transformer_engine.fp8_runs import TWO_RANKS
from tests.transformer_engine.pretended import needs_sources
from tests.transformer_engine.runs import SMALL

pytestmark = needs_sources

FP8 = ("delayed", "tensorwise")
IN_8_BITS = {
    "self_attention.linear_qkv.weight",
    "self_attention.linear_proj.weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
    "memory.query_proj.weight",
    "memory.value_proj.weight",
    "memory.output_proj.weight",
}


@pytest.fixture(scope="module", params=[SMALL.parallel, TWO_RANKS], ids=["one process", "TP 2 and SP"])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Two steps in every precision, by rank."""
    parallel: ParallelConfig = request.param
    return run_distributed(fp8_runs.arithmetic, parallel.tensor_model_parallel_size, parallel, timeout=280)


def test_the_recipe_has_the_options(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["none"]["recipes"] == []
        assert set(rank["delayed"]["recipes"]) == {("TEDelayedScaling", 2, "HYBRID")}
        assert set(rank["tensorwise"]["recipes"]) == {("Float8CurrentScaling", None, "E4M3")}
        assert rank["delayed"]["formats"] == ["kFloat8E4M3", "kFloat8E5M2"]
        assert rank["tensorwise"]["formats"] == ["kFloat8E4M3"]


def test_of_the_parameters_only_linear_weights_are_in_8_bits(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["none"]["rounded"] == []
        for name in FP8:
            assert {parameter.split(".", 3)[3] for parameter in rank[name]["rounded"]} == IN_8_BITS


def test_tables_are_float32_and_never_in_8_bits(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for name in FP8:
            assert rank[name]["tables"] == {"torch.float32"}
            assert rank[name]["rounded tables"] == []


def test_it_computes_about_what_bfloat16_does(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for name in FP8:
            for (loss, norm), (expected, expected_norm) in zip(rank[name]["steps"], rank["none"]["steps"], strict=True):
                assert loss == pytest.approx(expected, rel=0.03) and loss != expected
                assert norm == pytest.approx(expected_norm, rel=0.2)


def test_ranks_read_and_write_their_memory_alike(ranks: list[dict[str, Any]]) -> None:
    for name in FP8:
        assert len({tuple(rank[name]["hashes"]) for rank in ranks}) == 1
        assert len({tuple(rank[name]["steps"]) for rank in ranks}) == 1


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fp8") / "checkpoint"
    folder.mkdir()
    (found,) = run_distributed(fp8_runs.resumed, 1, folder, timeout=280)
    return found


def test_a_run_goes_on_bit_for_bit_with_the_scales_of_its_checkpoint(resumed: dict[str, Any]) -> None:
    (losses, whole), (losses_of_cut, cut) = resumed["whole"], resumed["cut"]
    assert losses == losses_of_cut and whole.keys() == cut.keys()
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []
    assert resumed["without scales"] != losses, "otherwise the scales do not matter"


@pytest.mark.parametrize("other", ["none", "tensorwise", "from plain"])
def test_checkpoints_move_between_precisions(resumed: dict[str, Any], other: str) -> None:
    assert resumed[other] == pytest.approx(resumed["whole"][0][0], rel=0.03)


@pytest.mark.slow
def test_recomputed_layers_scale_as_they_did() -> None:
    (found,) = run_distributed(fp8_runs.recomputed, 1, timeout=280)
    for name, ((loss, kept), (loss_again, recomputed)) in found.items():
        assert loss == loss_again
        assert [key for key in kept if not torch.equal(kept[key], recomputed[key])] == [], name
