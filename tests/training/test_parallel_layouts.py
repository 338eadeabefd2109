"""Every layout of processes gives the serial run's numbers: loss, gradient norm and tables after some steps.

Documents reset the memory before every sequence's first token, so that replicas, which own their memories, see what the
serial run sees; where one replica does all the work the memory is carried over from step to step as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import FwPKMConfig, ModelConfig, OptimizerConfig, ParallelConfig, PretrainConfig
from tests.distributed import run_distributed
from tests.training.test_engine import BASE, VOCABULARY, batches, change

STEPS = 4
EVERYWHERE = PretrainConfig(
    model=ModelConfig(num_layers=4, hidden_size=16, num_attention_heads=2, seq_length=24),
    # On the first and last layer, and two in one stage.
    # Few large slots moved by whole steps, and Adam's division by small moments, both blow up differences at rounding
    # level within some steps: small addressing steps and a large epsilon keep the comparison at 1e-5.
    fwpkm=FwPKMConfig(
        layer_numbers=(1, 2, 4), num_subkeys=4, key_dim=8, value_dim=8, topk=2, chunk_size=8, addressing_weight=0.1
    ),
    optimizer=OptimizerConfig(lr=1e-2, lr_warmup_iters=2, adam_eps=1e-3),
    data=BASE.data,
    training=BASE.training,
    checkpoint=BASE.checkpoint,
)
EVERYWHERE = change(EVERYWHERE, "training", train_iters=STEPS)


@dataclass(frozen=True)
class Layout:
    """One row of the table."""

    name: str
    processes: int
    tp: int = 1
    pp: int = 1
    chunks: int = 1
    more: dict[str, Any] = field(default_factory=dict)
    bf16: bool = False

    @property
    def replicas(self) -> int:
        return self.processes // (self.tp * self.pp)

    def config(self) -> PretrainConfig:
        parallel = ParallelConfig(
            tensor_model_parallel_size=self.tp,
            pipeline_model_parallel_size=self.pp,
            num_virtual_stages_per_pipeline_rank=self.chunks,
            **self.more,
        )
        config = change(EVERYWHERE, "training", bf16=self.bf16)
        config = change(config, "fwpkm", reset="document" if self.replicas > 1 else "never")
        return change(config, "parallel", **vars(parallel))


SP = {"sequence_parallel": True}
ZERO = {"use_distributed_optimizer": True}
OVERLAP = {"overlap_grad_reduce": True}
LAYOUTS = [
    Layout("TP2", 2, tp=2),
    Layout("TP2 SP", 2, tp=2, more=SP),
    Layout("PP2", 2, pp=2),
    Layout("PP2 interleaved", 2, pp=2, chunks=2),
    Layout("DP2", 2),
    Layout("DP2 ZeRO-1", 2, more=ZERO),
    Layout("DP2 overlap", 2, more=OVERLAP),
    Layout("PP2 interleaved overlap ZeRO-1", 2, pp=2, chunks=2, more={**OVERLAP, **ZERO}),
    Layout("TP2 SP bf16", 2, tp=2, more=SP, bf16=True),
    Layout("PP2 bf16", 2, pp=2, bf16=True),
    Layout("PP4", 4, pp=4),
    Layout("DP4 ZeRO-1", 4, more=ZERO),
    Layout("TP2 PP2", 4, tp=2, pp=2),
    Layout("TP2 SP PP2 interleaved", 4, tp=2, pp=2, chunks=2, more=SP),
    Layout("TP2 DP2", 4, tp=2),
    Layout("TP2 SP DP2 ZeRO-1", 4, tp=2, more={**SP, **ZERO}),
    Layout("PP2 DP2", 4, pp=2),
    Layout("PP2 interleaved DP2 ZeRO-1", 4, pp=2, chunks=2, more=ZERO),
    Layout("TP2 SP PP2 ZeRO-1 bf16", 4, tp=2, pp=2, more={**SP, **ZERO}, bf16=True),
]
SHORT = ("TP2 SP", "PP2", "PP2 interleaved", "DP2 ZeRO-1")


def numbers(layout: Layout) -> dict[str, Any]:
    """Losses, norms, evaluation and whole tables of this rank's layers, in the running processes."""
    from megatron.core import parallel_state

    from megatron_fwpkm.training.engine import MegatronEngine
    from megatron_fwpkm.training.startup import distributed_run

    config = layout.config()
    with distributed_run(config.parallel, config.training) as world:
        group = parallel_state.get_tensor_model_parallel_group()
        engine = MegatronEngine(config, VOCABULARY, world.device)
        replica = parallel_state.get_data_parallel_rank()
        source = batches(0, replica, layout.replicas)
        steps = [engine.train_step(source) for _ in range(STEPS)]
        evaluated = engine.evaluate(batches(100, replica, layout.replicas), 1)
        tables = {}
        for memory in engine.memories:
            for name in ("sub_keys", "values"):
                mine = getattr(memory.fast_weights(), name).contiguous()
                parts = [torch.empty_like(mine) for _ in range(group.size())]
                torch.distributed.all_gather(parts, mine, group=group)
                whole = EVERYWHERE.fwpkm.value_dim if name == "values" else EVERYWHERE.fwpkm.num_subkeys
                axis = -1 if name == "values" else 2
                tables[memory.layer_number, name] = torch.cat(parts, axis) if mine.shape[axis] < whole else mine.clone()
        curve = [(step.losses.loss, step.grad_norm) for step in steps]
        return {"curve": curve, "evaluated": evaluated.loss, "tables": tables, "replica": replica}


def all_numbers(rank: int, world_size: int, layouts: list[Layout]) -> dict[str, dict[str, Any]]:
    """Layouts one after the other in the same processes."""
    return {layout.name: numbers(layout) for layout in layouts}


_SERIAL: dict[tuple[bool, str], dict[str, Any]] = {}


def serial(layout: Layout) -> dict[str, Any]:
    """The serial run with the layout's precision and resets."""
    reset = layout.config().fwpkm.reset
    key = (layout.bf16, reset)
    if key not in _SERIAL:
        alone = Layout("serial", 1, bf16=layout.bf16)
        config = change(alone.config(), "fwpkm", reset=reset)
        object.__setattr__(alone, "config", lambda: config)
        _SERIAL[key] = numbers(alone)
    return _SERIAL[key]


def check(layout: Layout, ranks: list[dict[str, Any]]) -> None:
    expected = serial(layout)
    # bf16 rounds sums that are cut differently, and a small norm shows it most; a wrong layout is off by far more.
    tolerance, norm_tolerance = (1e-2, 0.15) if layout.bf16 else (1e-5, 1e-5)
    seen = set()
    for number, found in enumerate(ranks):
        where = f"{layout.name}, rank {number}"
        for step, (mine, right) in enumerate(zip(found["curve"], expected["curve"], strict=True)):
            assert mine[0] == pytest.approx(right[0], rel=tolerance), f"{where}, step {step}: loss"
            assert mine[1] == pytest.approx(right[1], rel=norm_tolerance), f"{where}, step {step}: gradient norm"
        assert found["evaluated"] == pytest.approx(expected["evaluated"], rel=tolerance), where
        seen |= set(found["tables"])
        if layout.replicas == 1 and not layout.bf16:
            for key, table in found["tables"].items():
                torch.testing.assert_close(
                    table,
                    expected["tables"][key],
                    rtol=1e-5,
                    atol=1e-5,
                    msg=lambda text, w=where, k=key: f"{w}, {k}: {text}",
                )
    assert seen == set(expected["tables"]), layout.name


@pytest.mark.usefixtures("cpu_compat")
def test_short_table() -> None:
    chosen = [layout for layout in LAYOUTS if layout.name in SHORT]
    results = run_distributed(all_numbers, 2, chosen, timeout=150)
    for layout in chosen:
        check(layout, [result[layout.name] for result in results])


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.parametrize("processes", [size for size, _ in groupby(layout.processes for layout in LAYOUTS)])
def test_whole_table(processes: int) -> None:
    chosen = [layout for layout in LAYOUTS if layout.processes == processes]
    results = run_distributed(all_numbers, processes, chosen, timeout=600)
    for layout in chosen:
        check(layout, [result[layout.name] for result in results])
