"""A checkpoint of any layout is loaded exactly at any other: weights, optimizer states, tables, as they lie on disk.

A layout trains and saves; every other one loads that and saves it again at once. The files must hold the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from megatron_fwpkm.checkpoint.store_layout import stored_tensors
from tests.engines.test_engine import VOCABULARY, batches
from tests.spawned_ranks import run_distributed
from tests.training.test_parallel_layouts import ROWS, configured
from tests.training.trained_layouts import SP, ZERO, Layout

pytestmark = pytest.mark.layouts

MORE = [
    Layout("TP2 ZeRO-1", 2, tp=2, more=ZERO),
    Layout("PP2 interleaved ZeRO-1", 2, pp=2, chunks=2, more=ZERO),
    Layout("CP2 ZeRO-1", 2, cp=2, more=ZERO),
    Layout("TP4 SP ZeRO-1", 4, tp=4, more={**SP, **ZERO}),
    Layout("PP4 ZeRO-1", 4, pp=4, more=ZERO),
    Layout("CP4 ZeRO-1", 4, cp=4, more=ZERO),
]
LAYOUTS = ROWS | {layout.name: layout for layout in MORE}


def pass_on(rank: int, world_size: int, names: list[str], root: Path) -> list[list[str]]:
    """The first layout trains and saves; the others load that and save it again. Returns the notices of each load."""
    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    notices = []
    for number, name in enumerate(names):
        config = configured(LAYOUTS[name], "float32", "never")
        with megatron_run(config.parallel, config.training) as world:
            engine = MegatronEngine(config, VOCABULARY, world.device)
            if number == 0:
                assert LAYOUTS[name].replicas == 1, "the first replica's memory is compared"
                source = batches(0)
                for _ in range(2):
                    engine.train_step(source)
            else:
                notices.append(engine.load(root / "0", weights_only=False))
            engine.save(root / str(number))
    return notices


def read_all(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint; of the fast weights the first replica's."""
    found: dict[str, Tensor] = {}
    for part in ("model", "fast_weights"):
        wanted = {key: meta for key, meta in stored_tensors(folder / part).items() if "/replica" not in key}
        wanted |= {key: meta for key, meta in stored_tensors(folder / part).items() if "/replica0/" in key}
        tensors = {key: torch.full(meta.size, torch.nan, dtype=meta.properties.dtype) for key, meta in wanted.items()}
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder / part), no_dist=True)
        found |= tensors
    return found


def check(names: list[str], root: Path, timeout: float) -> None:
    processes = LAYOUTS[names[0]].processes
    notices = run_distributed(pass_on, processes, names, root, timeout=timeout)[0]
    saved = read_all(root / "0")
    assert sum(key.endswith("/values") for key in saved) == 3 and any("exp_avg" in key for key in saved)
    assert sum(key.endswith("/down_weight") for key in saved) == 1
    for number, name in enumerate(names[1:], 1):
        assert bool(notices[number - 1]) == (LAYOUTS[name].replicas > 1), name
        again = read_all(root / str(number))
        assert again.keys() == saved.keys(), name
        assert [key for key in saved if not torch.equal(saved[key], again[key])] == [], name


@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    check(["TP2 ZeRO-1", "PP2 interleaved ZeRO-1", "CP2 ZeRO-1", "DP2 ZeRO-1"], tmp_path, timeout=100)


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.parametrize(
    "names",
    [
        ["TP2 SP PP2 ZeRO-1", "TP4 SP ZeRO-1", "PP4 ZeRO-1", "CP4 ZeRO-1", "TP2 SP CP2 ZeRO-1", "DP4 ZeRO-1"],
        ["TP2 CP2", "TP2 SP PP2 interleaved", "TP4", "PP4", "CP4", "PP2 CP2", "PP2 DP2", "TP2 DP2"],
    ],
    ids=["ZeRO-1", "plain"],
)
def test_four_processes(names: list[str], tmp_path: Path) -> None:
    check(names, tmp_path, timeout=280)
