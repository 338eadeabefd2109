"""Fast-weight MLPs in a run: bit for bit through a resume, in reports, reset, and with other options from there on."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from megatron_fwpkm.config import FwMLPConfig
from megatron_fwpkm.config.field_metadata import MAY_CHANGE, marked
from megatron_fwpkm.config.loading import Resolved
from megatron_fwpkm.config.memories import fast_weight_bytes, memory_kinds
from megatron_fwpkm.config.parameter_counts import num_parameters
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from megatron_fwpkm.ops import FastMLPOptions
from megatron_fwpkm.training.dry_run import dry_run
from megatron_fwpkm.training.memory_estimate import estimate_memory
from megatron_fwpkm.training.metrics import progress_line
from tests.engines.test_engine import BASE, VOCABULARY, batches, change, halves_equal_the_whole

FAST_MLP = replace(
    change(BASE, "fwpkm", layer_numbers=()),
    fwmlp=FwMLPConfig(layer_numbers=(1,), hidden_size=12, key_dim=8, value_dim=8, chunk_size=8, inner_lr=0.5),
)
BOTH = change(FAST_MLP, "fwpkm", layer_numbers=(2,))
OTHER_VALUES: dict[str, Any] = {
    "chunk_size": 12, "lookahead": 2, "inner_lr": 0.25, "boundary": "carry", "reset": "step",
    "owner": "sequence",
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("cpu_compat")


@pytest.mark.parametrize(("config", "changes"), [
    pytest.param(BOTH, {}, marks=pytest.mark.slow),
    pytest.param(FAST_MLP, {"reset": "document"}, marks=pytest.mark.slow),
    (FAST_MLP, {"reset": "step", "boundary": "carry"}),
])  # fmt: skip
def test_a_resumed_run_continues_bit_for_bit(config: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    losses = halves_equal_the_whole(change(config, "fwmlp", **changes), tmp_path / "checkpoint")
    assert all(math.isfinite(loss) for loss in losses)


def test_options_that_may_change_count_from_the_resume_on(tmp_path: Path) -> None:
    assert OTHER_VALUES.keys() == set(marked(FwMLPConfig, MAY_CHANGE))
    with megatron_run(FAST_MLP.parallel, FAST_MLP.training) as world:
        engine = MegatronEngine(FAST_MLP, VOCABULARY, world.device)
        initial = engine.memories[0].weights()
        engine.train_step(batches(0))
        assert not torch.equal(engine.memories[0].weights().gate_weight, initial.gate_weight)
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        engine.save(folder)
        saved = engine.memories[0].weights()
        for name, value in OTHER_VALUES.items():
            config = change(FAST_MLP, "fwmlp", **{name: value})
            if name == "owner":
                config = change(config, "fwmlp", reset="step")
            resumed = MegatronEngine(config, VOCABULARY, world.device)
            resumed.load(folder, weights_only=False)
            memory = resumed.memories[0]
            assert memory.options == FastMLPOptions.of(config.fwmlp)
            expected = initial if name == "owner" else saved  # what every sequence begins with
            assert all(torch.equal(one, other) for one, other in zip(memory.weights(), expected, strict=True)), name
            resumed.train_step(batches(4))
            if name == "reset":
                memory.reset()
                assert all(torch.equal(one, other) for one, other in zip(memory.weights(), initial, strict=True))


def test_reports_leave_out_what_it_does_not_have() -> None:
    with megatron_run(BOTH.parallel, BOTH.training) as world:
        engine = MegatronEngine(BOTH, VOCABULARY, world.device)
        engine.train_step(batches(0))
        report = engine.memory_report()
        record = report.as_record()
        with torch.no_grad():
            engine.memories[0].weights().up_bias[0] = math.nan
        assert engine.memory_report().finite_tables == {1: False, 2: True}
    assert set(record["1"]) == {"gate_mean", "memorization_loss"} and "coverage" in record["2"]
    assert 0 < record["1"]["gate_mean"] < 1 and record["1"]["memorization_loss"] > 0
    step = {"iteration": 1, "loss": 1.0, "lm_loss": 1.0, "lr": 1.0, "grad_norm": 1.0, "tokens_per_second": 1.0}
    line = progress_line({**step, "memory": {"1": record["1"]}}, 8, 1.0)
    assert "gate " in line and "memorization " in line and "slots" not in line
    assert "slots" in progress_line({**step, "memory": record}, 8, 1.0)


def test_counts_before_a_run_are_those_of_the_model() -> None:
    for config in (BOTH, change(FAST_MLP, "fwmlp", gate=False)):
        with megatron_run(config.parallel, config.training) as world:
            engine = MegatronEngine(config, VOCABULARY, world.device)
            assert engine.num_parameters == num_parameters(change(config, "model", make_vocab_size_divisible_by=1), 96)
            for memory in engine.memories:
                stored = sum(table.nbytes for table in memory.fast_weights().tables().values())
                assert fast_weight_bytes(config, [memory.layer_number]) == stored
    two, owned = (change(change(FAST_MLP, "training", micro_batch_size=2), "fwmlp", reset="step", owner=owner)
                  for owner in ("micro-batch", "sequence"))  # fmt: skip
    kept = [memory_kinds(config)[0].fast.kept_bytes(config) for config in (two, owned)]
    assert kept[1] == 2 * kept[0] > 0
    one = estimate_memory(FAST_MLP, 96, 1)
    assert one.tables == 4 * (12 * (2 * 9 + 8) + 8) and one.undo_log > 3 * one.tables
    text = StringIO()
    planned = change(change(FAST_MLP, "data", data_path=("corpus",)), "training", dry_run=True)
    dry_run(Resolved(planned, defaultdict(lambda: "default")), Console(file=text, width=150))
    assert "FwMLP 8-12-8, chunk 8" in text.getvalue() and "(--fwmlp-reset never)" in text.getvalue()


def test_an_evaluation_leaves_no_trace() -> None:
    with megatron_run(FAST_MLP.parallel, FAST_MLP.training) as world:
        engine = MegatronEngine(FAST_MLP, VOCABULARY, world.device)
        engine.train_step(batches(0))
        before = engine.memories[0].weights()
        assert engine.evaluate(batches(40), 2) is not None
        assert all(one is other for one, other in zip(engine.memories[0].weights(), before, strict=True))


@pytest.mark.parametrize(("message", "changes"), [
    ("--fwpkm-layer-numbers and --fwmlp-layer-numbers both contain 2, but a layer", {"layer_numbers": (2,)}),
    ("--fwmlp-layer-numbers 9 must be between 1 and 2", {"layer_numbers": (9,)}),
    ("--fwmlp-lookahead 8 leaves no tokens to write of --fwmlp-chunk-size 8", {"lookahead": 8}),
    ("--fwmlp-value-dim 1 cannot be z-scored: use at least 2, or --no-fwmlp-normalize-targets", {"value_dim": 1}),
    ("--fwmlp-gate-writes requires a gate", {"gate_writes": True, "gate": False}),
    ("--fwmlp-chunk-size 64 is longer than --seq-length 24", {"chunk_size": 64}),
    ("--fwmlp-owner sequence ends a memory with its sequence, but --fwmlp-reset", {"owner": "sequence"}),
    ("--fwpkm-dp-sync average has no effect with --fwmlp-reset step", {"reset": "step"}),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(message: str, changes: dict[str, Any]) -> None:
    config = change(change(BOTH, "fwmlp", **changes), "data", data_path=("corpus",))
    config = change(config, "fwpkm", dp_sync="average") if "dp-sync" in message else config
    (said,) = (line for line in problems(config) if "fwmlp" in line)
    assert said.startswith(message)
