"""DeepSpeed's engine resumes bit for bit, with every replica's memory, and at other layouts; weights fit any engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.checkpoint.store_layout import read_description, replicas_with_tables, stored_tensors
from tests.engines.deepspeed_cases import config_of, engine_of, take_steps
from tests.spawned_ranks import run_distributed

Steps = list[tuple[float, float, float]]


def tables(engine: Any) -> list[torch.Tensor]:
    states = [memory.fast_weights() for memory in engine.memories]
    return [table.clone() for state in states for table in state.tables().values()]


def saved_and_resumed(
    rank: int, size: int, pairs: list[tuple[dict[str, Any], dict[str, Any]]], root: str, weights_only: bool
) -> list[dict[str, Any]]:
    """For every pair: three steps, a checkpoint and two more steps; those two again in an engine that loads it."""
    found = []
    for number, (saving, loading) in enumerate(pairs):
        folder = Path(root) / f"checkpoint_{number}"
        with engine_of(config_of(saving, root)) as engine:
            take_steps(engine, 0, 3)
            before = tables(engine)
            engine.save(folder)
            went_on = take_steps(engine, 3, 2)
            last = tables(engine)
        with engine_of(config_of(loading, root)) as engine:
            notices = engine.load(folder, weights_only=weights_only)
            loaded = tables(engine)
            resumed = take_steps(engine, 3, 2)
            again = tables(engine)
        found.append(
            {
                "went_on": went_on,
                "resumed": resumed,
                "notices": notices,
                "left": sorted(path.name for path in Path(root).glob(".deepspeed*")),
                "loaded": [float(table.double().sum()) for table in loaded],
                "same_tables": [torch.equal(*both) for both in zip(before + last, loaded + again, strict=True)]
                if [table.shape for table in before] == [table.shape for table in loaded]
                else [],
            }
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_resumes_bit_for_bit_and_every_replica_keeps_its_memory(stage: int, tmp_path: Path) -> None:
    """Two replicas, whose memories differ because their texts do: DeepSpeed alone would give both that of the first."""
    case = {"stage": stage}
    ranks = run_distributed(saved_and_resumed, 2, [(case, case)], str(tmp_path), False, timeout=280)
    for first, second in zip(*ranks, strict=True):
        for replica in (first, second):
            assert replica["went_on"] == replica["resumed"] and replica["notices"] == []
            assert replica["same_tables"] and all(replica["same_tables"])
        assert all(one != other for one, other in zip(first["loaded"], second["loaded"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_of_two_replicas_one_memory_is_saved(tmp_path: Path, stage: int) -> None:
    """What is the engine's own goes on bit for bit, the first memory too, which the second replica continues with."""
    case = {"stage": stage, "fwpkm": {"save_replicas": 1}}
    (first,), (second,) = run_distributed(saved_and_resumed, 2, [(case, case)], str(tmp_path), False, timeout=280)
    store = tmp_path / "checkpoint_0" / "fast_weights"
    assert replicas_with_tables(stored_tensors(store), 2) == (0,) == read_description(store).saved_replicas
    assert first["loaded"] == second["loaded"] and second["same_tables"][0] is False
    assert all(first["same_tables"][: len(first["loaded"])])
    (notice,) = second["notices"]
    assert notice.startswith("only the memories of 1 of 2 replicas were saved (replicas 0, in this order)")
    steps = zip(first["went_on"], first["resumed"], strict=True)
    assert all(went_on[2] == resumed[2] and went_on != resumed for went_on, resumed in steps), "learning rates"
    assert [loss for loss, *_ in first["resumed"]] == pytest.approx([loss for loss, *_ in first["went_on"]], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("bf16", [False, True])
def test_every_stage_resumes_bit_for_bit_at_tp2_dp2(tmp_path: Path, stage: int, bf16: bool) -> None:
    if stage == 0 and bf16:
        pytest.skip("refused at start-up")
    case = {"stage": stage, "tp": 2, "sp": True, "training": {"bf16": bf16}}
    for rank in run_distributed(saved_and_resumed, 4, [(case, case)], str(tmp_path), False, timeout=280):
        assert rank[0]["went_on"] == rank[0]["resumed"] and all(rank[0]["same_tables"])


def check_another_layout(pairs: list[tuple[dict[str, Any], dict[str, Any]]], ranks: int, folder: Path) -> None:
    """Tables of another replica count are dealt by the rule, so that memories are compared by the losses alone."""
    for found in run_distributed(saved_and_resumed, ranks, pairs, str(folder), False, timeout=280)[0]:
        for one, other in zip(found["went_on"], found["resumed"], strict=True):
            assert other == pytest.approx(one, rel=1e-5), found
        assert found["left"] == []


RESET = {"fwpkm": {"reset": "document"}, "fwmlp": {"reset": "document"}}
"""Replicas then read what one replica would, so that another number of them changes nothing."""


@pytest.mark.slow
def test_a_checkpoint_goes_from_tensor_parallel_size_2_to_1(tmp_path: Path) -> None:
    """Through DeepSpeed's universal format, and with two replicas for one."""
    check_another_layout([({"stage": 1, "tp": 2, **RESET}, {"stage": 1, **RESET})], 2, tmp_path)


PAIRS = [
    ({"stage": 3, "tp": 2, **RESET}, {"stage": 3, **RESET}),
    ({"stage": 3, **RESET}, {"stage": 3, "tp": 2, "sp": True, **RESET}),
    ({"stage": 2, **RESET}, {"stage": 1, "tp": 2, **RESET}),
    ({"stage": 1, "tp": 2, **RESET}, {"stage": 2, "tp": 2, **RESET}),
]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_checkpoints_go_between_layouts_and_stages(tmp_path: Path, pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    check_another_layout([pair], 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair", [({"stage": 3, "tp": 2}, {"stage": None, "tp": 2}), ({"stage": None, "tp": 2}, {"stage": 3, "tp": 2})]
)
def test_weights_go_from_one_engine_to_the_other(tmp_path: Path, pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """The loss before the first update is that of the saved run; the optimizer starts anew."""
    found = run_distributed(saved_and_resumed, 2, [pair], str(tmp_path), True, timeout=280)[0][0]
    assert found["resumed"][0][0] == pytest.approx(found["went_on"][0][0], rel=1e-6)
    assert found["same_tables"][:3] == [True, True, True]


def refused(rank: int, size: int, root: str) -> list[str]:
    said = []
    for number, (saving, loading) in enumerate(((0, 1), (1, 3), (None, 1))):
        folder = Path(root) / f"refused_{number}"
        with engine_of(config_of({"stage": saving}, root)) as engine:
            take_steps(engine, 0, 1)
            engine.save(folder)
        with engine_of(config_of({"stage": loading}, root)) as engine:
            with pytest.raises(ValueError) as error:
                engine.load(folder, weights_only=False)
            said.append(str(error.value))
    return said


@pytest.mark.slow
def test_what_cannot_be_converted_is_refused_with_its_reason(tmp_path: Path) -> None:
    without_sharding, other_stage, megatron = run_distributed(refused, 1, str(tmp_path), timeout=200)[0]
    assert "was written at ZeRO 0, TP 1, DP 1 and cannot be resumed at ZeRO 1, TP 1, DP 1" in without_sharding
    assert "give --zero-stage 0 and --tensor-model-parallel-size 1, or start a new run" in without_sharding
    assert "was written at ZeRO 1, TP 1, DP 1 and cannot be resumed at ZeRO 3, TP 1, DP 1" in other_stage
    assert "was not written by --engine deepspeed" in megatron and "--finetune" in megatron
