"""A model with every kind of layer resumes bit for bit where it was, and goes on in other layouts as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.layer_kinds import LAYER_KINDS, kinds_in_use
from megatron_fwpkm.config.pswa import is_windowed
from tests.engines.test_engine import VOCABULARY, batches, change, halves_equal_the_whole
from tests.spawned_ranks import run_distributed
from tests.training.double_precision import double_precision
from tests.training.kind_layouts import KINDS, LAYOUTS
from tests.training.test_moving_layouts import read_all
from tests.training.trained_layouts import (
    ZERO,
    Layout,
    check_tables,
    check_weights,
    table_parts,
    weight_parts,
)

pytestmark = pytest.mark.layouts

EVERY_KIND = KINDS["all of them"].config
SERIAL = Layout("serial", 1, more=ZERO)
THERE_AND_BACK = (Layout("TP2 ZeRO-1", 2, tp=2, more=ZERO), SERIAL, Layout("PP2 ZeRO-1", 2, pp=2, more=ZERO), SERIAL)


def resumable(layout: Layout) -> PretrainConfig:
    """Eight steps, of which both halves have narrowed and full attention, with dropout in all layers."""
    config = change(layout.of(EVERY_KIND, "never"), "training", train_iters=8)
    drawn = [is_windowed(config, step) for step in range(8)]
    assert {*drawn[:4]} == {*drawn[4:]} == {True, False}
    return change(config, "model", hidden_dropout=0.1, attention_dropout=0.1)


def halves(rank: int, world_size: int, layout: str, folder: Path) -> list[float]:
    return halves_equal_the_whole(resumable(LAYOUTS[layout]), folder)


def test_the_model_has_every_kind() -> None:
    assert {kind.name for kind in kinds_in_use(EVERY_KIND)} == set(LAYER_KINDS)


def test_every_kind_resumes_bit_for_bit(tmp_path: Path) -> None:
    halves_equal_the_whole(resumable(SERIAL), tmp_path / "checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["TP2 SP PP2 ZeRO-1", "TP2 CP2"])
def test_every_kind_resumes_bit_for_bit_on_four_ranks(tmp_path: Path, layout: str) -> None:
    run_distributed(halves, 4, layout, tmp_path / "checkpoint", timeout=300)


def next_leg(rank: int, world_size: int, number: int, root: Path) -> dict[str, Any]:
    """Go on from the last leg's checkpoint: save it again at once, then a step further, and say what is there."""
    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    config = THERE_AND_BACK[number].of(EVERY_KIND, "never")
    with double_precision(), megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        if number:
            assert engine.load(root / f"{number - 1} end", weights_only=False) == []
            engine.save(root / f"{number} start")
        losses = engine.train_step(batches(4 * number)).losses
        engine.save(root / f"{number} end")
        sharing = torch.distributed.get_process_group_ranks(_sharing_group())
        parts = {"weights": weight_parts(engine), "tables": table_parts(engine), "shared_by": sharing}
        return {"loss": losses.loss, **parts}


def _sharing_group() -> Any:
    from megatron.core import parallel_state

    return parallel_state.get_tensor_and_context_parallel_group()


def uninterrupted() -> tuple[list[float], dict[str, Any]]:
    """The same steps in one process without a stop: losses, and what is there at the end."""
    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    config = SERIAL.of(EVERY_KIND, "never")
    with double_precision(), megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        source = batches(0)
        losses = [engine.train_step(source).losses.loss for _ in THERE_AND_BACK]
        return losses, {"weights": weight_parts(engine), "tables": table_parts(engine)}


@pytest.mark.slow
def test_every_kind_goes_on_in_other_layouts(tmp_path: Path) -> None:
    losses, expected = uninterrupted()
    for number, layout in enumerate(THERE_AND_BACK):
        if layout.processes == 1:
            ranks = [next_leg(0, 1, number, tmp_path)]
        else:
            ranks = run_distributed(next_leg, layout.processes, number, tmp_path, timeout=200)
        assert all(rank["loss"] == pytest.approx(losses[number], rel=1e-10) for rank in ranks), layout.name
        if number:  # nothing is lost or changed by loading
            before, again = read_all(tmp_path / f"{number - 1} end"), read_all(tmp_path / f"{number} start")
            assert before.keys() == again.keys() and any("exp_avg" in name for name in before)
            assert [name for name in before if not torch.equal(before[name], again[name])] == [], layout.name
    check_weights("at the end", ranks, expected, 1e-10)
    check_tables("at the end", ranks, expected, 1e-10)
