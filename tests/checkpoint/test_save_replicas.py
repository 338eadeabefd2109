"""--fwpkm-save-replicas: which tables are stored, and which of them every replica continues with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_fwpkm.checkpoint.fast_weight_store import FastWeightStore
from megatron_fwpkm.checkpoint.store_layout import read_description, replicas_with_tables, stored_tensors
from megatron_fwpkm.config import FwPKMConfig
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.saved_replicas import replicas_to_save
from megatron_fwpkm.config.validation import validate
from megatron_fwpkm.engines.megatron_groups import memory_ranks
from tests.checkpoint.test_fast_weight_store import MEMORY, Layer, cut, start, whole
from tests.engines.test_engine import BASE, change, halves_equal_the_whole
from tests.spawned_ranks import run_distributed

RESET = None
"""Instead of a replica's number: the initial memory."""


def save(folder: Path, tensor_parallel: int, count: int, *, equal: bool = False) -> None:
    """Every replica has other tables or, if `equal`, only other waiting tokens."""
    tp, dp = start(tensor_parallel)
    layers = [Layer(n, cut(whole(n, dp), tp, tensor_parallel)) for n in (2, 3)]
    if equal:
        for layer in layers:
            first = cut(whole(layer.layer_number, 0), tp, tensor_parallel)
            layer.state = replace(layer.state, sub_keys=first.sub_keys, values=first.values)
    memory = replace(MEMORY, save_replicas=count)
    FastWeightStore(memory, seed=5, ranks=memory_ranks()).save(folder, layers, equal=equal)


def load(folder: Path, tensor_parallel: int, rule: str, tables: list[int | None], waiting: list[int]) -> str | None:
    """Replica r must get the tables of tables[r] and the waiting tokens of waiting[r]; returns the notice."""
    tp, dp = start(tensor_parallel)
    layers = [Layer(n, cut(whole(n, 99, pending=False), tp, tensor_parallel)) for n in (2, 3)]
    notice = FastWeightStore(replace(MEMORY, load_dp_rule=rule), seed=5, ranks=memory_ranks()).load(folder, layers)
    source = tables[dp]
    for layer in layers:
        if source is RESET:
            assert torch.equal(layer.state.values, torch.zeros(16, 8))
            continue
        expected = cut(whole(layer.layer_number, source), tp, tensor_parallel)
        assert torch.equal(layer.state.sub_keys, expected.sub_keys), (rule, dp, source)
        assert torch.equal(layer.state.values, expected.values), (rule, dp, source)
        own = cut(whole(layer.layer_number, waiting[dp]), tp, tensor_parallel).pending
        assert (layer.state.pending is None) == (own is None)
        if own is not None and layer.state.pending is not None:
            assert torch.equal(layer.state.pending.targets, own.targets), (rule, dp)
    return notice


def two_replicas(rank: int, world_size: int, folder: Path) -> list[str | None]:
    """One of two replicas' tables, and one copy of equal ones, at two replicas and at one."""
    from megatron_fwpkm.distributed import megatron_on_cpu

    megatron_on_cpu.install()
    save(folder / "one", 1, 1)
    save(folder / "equal", 1, 2, equal=True)
    return [
        load(folder / "one", 1, "modulo", [0, 0], [0, 1]),
        load(folder / "one", 1, "reset", [0, RESET], [0, 1]),
        load(folder / "one", 2, "modulo", [0], [0]),
        load(folder / "equal", 1, "reset", [0, 0], [0, 1]),
        load(folder / "equal", 2, "reset", [RESET], [0]),
    ]


@pytest.mark.slow
def test_one_of_two_replicas(tmp_path: Path) -> None:
    notices = run_distributed(two_replicas, 2, tmp_path)[1]
    few = "only the memories of 1 of 2 replicas were saved (replicas 0, in this order), which continue bit for bit; of "
    reset = "every replica starts from the initial memory"
    assert notices == [
        f"{few}the others, replica r loads the saved memory r modulo 1",
        f"{few}the others, {reset}",
        "the number of replicas changed from 2 to 1 (saved: the memories of replicas 0, in this order): replica r "
        "loads the saved memory r modulo 1",
        None,
        f"the number of replicas changed from 2 to 1: {reset}",
    ]
    for name, equal in (("one", False), ("equal", True)):
        stored, description = stored_tensors(tmp_path / name), read_description(tmp_path / name)
        assert (description.replicas, description.saved_replicas, description.replicas_equal) == (2, (0,), equal)
        assert replicas_with_tables(stored, 2) == replicas_with_tables(stored, 3) == (0,)
        assert {"layer2/replica0/pending/targets", "layer2/replica1/pending/targets"} <= stored.keys()


def four_processes(rank: int, world_size: int, folder: Path) -> None:
    """Half of four replicas, then one of two with two tensor-parallel ranks each."""
    from megatron_fwpkm.distributed import megatron_on_cpu

    megatron_on_cpu.install()
    save(folder / "dp4", 1, 2)
    save(folder / "tp2", 2, 1)
    load(folder / "dp4", 1, "modulo", [0, 2, 2, 2], [0, 1, 2, 3])
    load(folder / "dp4", 1, "replica0", [0, 0, 2, 0], [0, 1, 2, 3])
    load(folder / "dp4", 1, "reset", [0, RESET, 2, RESET], [0, 1, 2, 3])
    load(folder / "dp4", 2, "modulo", [0, 2], [0, 2])
    load(folder / "dp4", 2, "replica0", [0, 0], [0, 0])
    load(folder / "tp2", 2, "modulo", [0, 0], [0, 1])
    load(folder / "tp2", 1, "modulo", [0, 0, 0, 0], [0, 0, 0, 0])


@pytest.mark.slow
def test_some_of_four_replicas(tmp_path: Path) -> None:
    run_distributed(four_processes, 4, tmp_path, timeout=150)
    assert read_description(tmp_path / "dp4").saved_replicas == (0, 2)


def averaged_halves(rank: int, world_size: int, folder: Path) -> list[float]:
    """Replicas whose waiting tokens differ, and the number of writes that the rounding depends on."""
    shared = {"dp_sync": "average", "dp_sync_interval": 2, "boundary": "carry", "table_dtype": "bf16"}
    return halves_equal_the_whole(change(BASE, "fwpkm", **shared), folder / "halves")


@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.slow
def test_one_copy_after_averaging_resumes_bit_for_bit(tmp_path: Path) -> None:
    run_distributed(averaged_halves, 2, tmp_path, timeout=120)
    store = tmp_path / "halves" / "fast_weights"
    assert replicas_with_tables(stored_tensors(store), 2) == (0,) and read_description(store).replicas_equal


def test_replicas_are_evenly_spread() -> None:
    def chosen(count: int | str, replicas: int) -> tuple[int, ...]:
        return replicas_to_save(FwPKMConfig(save_replicas=count), replicas)  # type: ignore[arg-type]

    assert chosen(8, 512) == tuple(range(0, 512, 64))
    assert chosen(3, 8) == (0, 2, 5) and chosen(1, 8) == (0,)
    assert chosen("all", 4) == chosen(4, 4) == chosen(9, 4) == (0, 1, 2, 3)


def test_the_option_is_all_or_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    def given(word: str) -> int | str:
        return parse_pretrain(["--fwpkm-save-replicas", word]).config.fwpkm.save_replicas

    assert given("all") == "all" and given("4") == 4
    with pytest.raises(SystemExit):
        given("some")
    assert "--fwpkm-save-replicas 'some' is neither all nor an integer" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--fwpkm-save-replicas 0 must be at least 1"):
        validate(parse_pretrain(["--fwpkm-save-replicas", "0", "--vocab-size", "100"]).config, 1)
