"""Engines in spawned ranks: the same steps under Megatron's engine and DeepSpeed, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_fwpkm.config import EngineConfig, PretrainConfig
from megatron_fwpkm.engines.base import Engine
from megatron_fwpkm.engines.build import build_engine
from tests.engines.test_engine import VOCABULARY, batches, change
from tests.training.test_parallel_layouts import EVERYWHERE

# Small addressing steps and a large epsilon keep losses together in float32 (tests/training/test_parallel_layouts.py).
BASE = change(change(EVERYWHERE, "fwpkm", addressing_weight=0.1), "optimizer", adam_eps=1e-3, weight_decay=0.3)
BASE = change(BASE, "training", train_iters=20)
SHARDED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""Otherwise ZeRO-3 leaves weights as small as these whole."""


def config_of(case: Mapping[str, Any], folder: Path | str = "") -> PretrainConfig:
    """`stage` None is Megatron's engine; the rest are tp, sp and fields of groups."""
    case = {"stage": None, "tp": 1, "sp": False, **case}
    config = change(BASE, "parallel", tensor_model_parallel_size=case["tp"], sequence_parallel=case["sp"])
    # Rows of padding have a share in every loss: as many of them at every layout.
    config = change(config, "model", make_vocab_size_divisible_by=128 // case["tp"])
    for group in ("training", "model", "optimizer", "parallel", "fwpkm", "fwmlp"):
        config = change(config, group, **case.get(group, {}))
    if case["stage"] is None:
        return config
    file = None
    if case["stage"] == 3:
        file = f"{folder}/deepspeed.json"
        Path(file).write_text(json.dumps(SHARDED))
    return replace(config, engine=EngineConfig("deepspeed", case["stage"], file))


@contextmanager
def engine_of(config: PretrainConfig) -> Iterator[Engine]:
    """The engine in the running processes."""
    from megatron_fwpkm.distributed.startup import distributed_run

    with (
        distributed_run(config.parallel, config.training) as world,
        build_engine(config, world, VOCABULARY - 1) as engine,
    ):
        yield engine


def take_steps(engine: Engine, first: int, count: int) -> list[tuple[float, float, float]]:
    """(loss, norm, learning rate) of steps; a step of the run always has the same batches."""
    source = batches(4 * first, engine.data_parallel_rank, engine.layout.data_parallel)
    results = [engine.train_step(source) for _ in range(count)]
    return [(result.losses.loss, result.grad_norm, result.lr) for result in results]


def numbers(rank: int, size: int, cases: list[dict[str, Any]], folder: str, steps: int) -> list[Any]:
    """Steps and an evaluation of every case, on the same ranks."""
    found = []
    for case in cases:
        with engine_of(config_of(case, folder)) as engine:
            taken = take_steps(engine, 0, steps)
            source = batches(1000, engine.data_parallel_rank, engine.layout.data_parallel)
            found.append((taken, engine.evaluate(source, 2)))
    return found


