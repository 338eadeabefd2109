"""Numbers that are not finite and spikes of the loss: what is undone, which data is left out, and when a run ends."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.config import FaultConfig, PretrainConfig
from megatron_fwpkm.config.derived import embedding_rows
from megatron_fwpkm.config.undo_log_bytes import JOURNAL_SPARE_ROWS
from megatron_fwpkm.config.validation import validate
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from megatron_fwpkm.engines.megatron_model import MegatronModelEngine
from megatron_fwpkm.training.memory_estimate import estimate_memory
from megatron_fwpkm.training.metrics import read_records
from tests.engines.test_engine import BASE, VOCABULARY, batches, change, state_of
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import assert_same_checkpoint, flags, start, write_dataset
from tests.training.test_loop import CountingEngine, config, run

SKIP = replace(BASE, faults=FaultConfig(on_nan="skip"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


class SpoiledStep:
    """Batches of a step after which something is not finite: the loss, or only a row that nothing reads any more."""

    def __init__(self, engine: MegatronEngine, where: str) -> None:
        self.on, self.calls = False, 0
        memory = engine.memories[0]
        call = memory._call

        def spoiled(queries: torch.Tensor, targets: torch.Tensor, *rest: Any) -> Any:
            if self.on and where == "loss":
                targets = targets * math.nan
            output = call(queries, targets, *rest)
            self.calls += self.on
            if self.on and self.calls == 4 and where == "row":  # in the last micro-batch of the step
                memory.values[output.undo_log.rows[-1][0]] = math.inf
            return output

        memory._call = spoiled  # type: ignore[method-assign]


def skipping(rank: int, size: int, where: str, chosen: PretrainConfig) -> list[str]:
    """Which tensors differ after a step that is skipped; a good step follows."""
    with megatron_run(chosen.parallel, chosen.training) as world:
        rows = embedding_rows(chosen, VOCABULARY)
        engine = MegatronEngine(chosen, rows, world.device)
        spoiled, source = SpoiledStep(engine, where), batches(0)
        engine.train_step(source)
        before = {name: tensor.clone() for name, tensor in state_of(engine).items()}
        spoiled.on = rank == size - 1
        result = engine.train_step(source)
        assert result.skipped and engine.scheduler.num_steps == 2
        assert math.isfinite(result.losses.loss) == (where == "row")
        after = state_of(engine)
        differ = [name for name in before if not torch.equal(before[name], after[name])]
        spoiled.on = False
        good = engine.train_step(source)
        assert not good.skipped and math.isfinite(good.losses.loss) and math.isfinite(good.grad_norm)
        assert all(torch.isfinite(memory.values).all() for memory in engine.memories)
        assert not torch.equal(state_of(engine)["memory/2/values"], before["memory/2/values"])
    return differ


@pytest.mark.parametrize(("where", "table"), [("loss", "fp32"), ("row", "bf16")])
def test_a_skipped_step_leaves_no_trace(where: str, table: str) -> None:
    assert skipping(0, 1, where, change(SKIP, "fwpkm", table_dtype=table)) == []


def test_all_ranks_skip_together() -> None:
    """The row lies in one rank's columns of the table, and the loss is finite."""
    chosen = change(SKIP, "parallel", tensor_model_parallel_size=2)
    assert run_distributed(skipping, 2, "row", change(chosen, "model", num_query_groups=2)) == [[], []]


def test_skipping_changes_no_good_step() -> None:
    states = []
    for chosen in (BASE, SKIP):
        with megatron_run(chosen.parallel, chosen.training) as world:
            engine, source = MegatronEngine(chosen, embedding_rows(chosen, VOCABULARY), world.device), batches(0)
            numbers = [engine.train_step(source) for _ in range(3)]
            states.append((numbers, {name: tensor.clone() for name, tensor in state_of(engine).items()}))
    assert states[0][0] == states[1][0]
    assert [name for name in states[0][1] if not torch.equal(states[0][1][name], states[1][1][name])] == []


def test_the_dry_run_counts_what_a_skipped_step_needs() -> None:
    plain, skip = (estimate_memory(chosen, VOCABULARY, 1).undo_log for chosen in (BASE, SKIP))
    # 96 tokens read all 16 slots; two marks per slot
    assert skip - plain == (16 + JOURNAL_SPARE_ROWS) * (8 * 4 + 8) + 2 * 16
    documents = [estimate_memory(change(chosen, "fwpkm", reset="document"), VOCABULARY, 1) for chosen in (BASE, SKIP)]
    assert documents[0].undo_log == documents[1].undo_log


def spoil_data(monkeypatch: pytest.MonkeyPatch, from_position: int, until: int) -> list[int]:
    """Batches whose loss is NaN; returns the first window of every micro-batch that is trained on, as it grows."""
    from megatron_fwpkm.data.training import sampler

    seen: list[int] = []
    losses = MegatronModelEngine._token_losses
    ask = sampler.ResumableSampler.__iter__

    def order(self: Any) -> Any:
        for positions in ask(self):
            seen.append(positions[0])
            yield positions

    def spoiled(self: Any, model: Any, loaded: Any) -> Any:
        found, batch = losses(self, model, loaded)
        return (found * math.nan if from_position <= seen[-1] < until else found), batch

    monkeypatch.setattr(sampler.ResumableSampler, "__iter__", order)
    monkeypatch.setattr(MegatronModelEngine, "_token_losses", spoiled)
    return seen


def rewinding(dataset: str, folder: Path, **more: Any) -> list[str]:
    chosen = {"train_iters": 9, "save": folder, "save_interval": 3, "on_nan": "rewind", "log_interval": 1}
    return flags(dataset, **{**chosen, "eval_iters": 0, "split": "1,0,0", **more})


def test_a_rewound_run_leaves_the_data_out_and_resumes_exactly(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = spoil_data(monkeypatch, 18, 20)  # in iteration 5, of samples 16 to 19
    whole = tmp_path / "whole"
    assert start(rewinding(dataset, whole)) == 0
    said = capfd.readouterr().out
    assert "iteration 5: the loss is nan" in said
    assert "went back to iteration 3 and leaves out samples 12 to 19 of the data order (1 of --on-nan-limit 10)" in said
    assert seen == list(range(0, 44, 2))
    records = read_records(whole / "metrics.jsonl")
    assert [r["iteration"] for r in records if r["kind"] == "train"] == list(range(1, 10))
    rewind = next(r for r in records if r["kind"] == "rewind")
    assert (rewind["iteration"], rewind["failed_iteration"], rewind["left_out"]) == (3, 5, [12, 19])
    assert rewind["reason"] == "iteration 5: the loss is nan"
    assert records[-1]["reason"] == "finished" and math.isfinite(records[-1]["last_loss"])

    # A run that is killed right after it went back knows which data it leaves out; nothing is saved in between.
    killed, steps = tmp_path / "killed", MegatronEngine.train_step
    calls = 0

    def die(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:  # iterations 1 to 5, and 4 once more
            raise KeyboardInterrupt
        return steps(self, *args)

    monkeypatch.setattr(MegatronEngine, "train_step", die)
    assert start(rewinding(dataset, killed)) == 130
    assert json.loads((killed / "iter_0000003/run.json").read_text())["loop"]["skipped_samples"] == 8
    monkeypatch.setattr(MegatronEngine, "train_step", steps)
    assert start(rewinding(dataset, killed, resume=True)) == 0
    one, other = read_checkpoint(whole), read_checkpoint(killed)
    assert one.iteration == other.iteration == 9
    assert_same_checkpoint(one, other)


def test_rewinds_are_bounded(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil_data(monkeypatch, 18, 1000)
    assert start(rewinding(dataset, tmp_path, on_nan_limit=2)) == 1
    assert re.search(r"error: iteration 4: the loss is nan.*; --on-nan-limit 2 is used up", capfd.readouterr().err)
    spoil_data(monkeypatch, 0, 1000)
    assert start(rewinding(dataset, tmp_path / "new")) == 1
    assert "no checkpoint in --save is from before iteration 1" in capfd.readouterr().err


def with_faults(**faults: Any) -> PretrainConfig:
    return replace(config(), faults=FaultConfig(**faults))


def spikes(*steps: int) -> dict[Any, float]:
    """The loss is 2 at these steps of the engine, and 1 otherwise."""
    return {step: 2.0 if step in steps else 1.0 for step in range(1, 60)}


def test_a_spike_of_the_loss_goes_back_before_it_began(tmp_path: Path) -> None:
    chosen = with_faults(loss_spike_factor=1.5, loss_spike_window=4, loss_spike_steps=3)
    saved, records = run(tmp_path, CountingEngine(spikes(8, 11, 12, 13)), chosen)
    rewind = next(r for r in records if r["kind"] == "rewind")
    # Iteration 12 was saved within the spike, 8 was alone.
    assert (rewind["iteration"], rewind["failed_iteration"], rewind["left_out"]) == (6, 13, [12, 25])
    assert "the loss 2.0000 is more than --loss-spike-factor 1.5 times the median 1.0000 of the 4" in rewind["reason"]
    assert saved.saved == [6, 12, 12, 18, 20] and saved.left_out == 14
    assert [r["iteration"] for r in records if r["kind"] == "train"] == [5, 10, 15, 20]
    # The first losses have no median yet.
    _, records = run(tmp_path / "first", CountingEngine(spikes(1, 2, 3)), chosen)
    assert not [r for r in records if r["kind"] == "rewind"]


def test_skipped_steps_are_counted_and_bounded(tmp_path: Path) -> None:
    class Skipping(CountingEngine):
        def train_step(self, *args: Any) -> Any:
            result = super().train_step(*args)
            bad = replace(result.losses, loss=math.nan)
            return replace(result, losses=bad, skipped=True) if self.steps in (1, 7) else result

    _, records = run(tmp_path, Skipping(), with_faults(on_nan="skip"))
    assert [r["iteration"] for r in records if r["kind"] == "skip"] == [1, 7]
    assert records[-1]["iteration"] == 20 and math.isfinite(records[-1]["last_loss"])
    with pytest.raises(ValueError, match=r"iteration 7 was skipped: the loss is nan.*more than --on-nan-limit 1"):
        run(tmp_path / "bounded", Skipping(), with_faults(on_nan="skip", on_nan_limit=1))


@pytest.mark.parametrize(
    ("faults", "change_to", "match"),
    [
        ({"on_nan": "rewind"}, {}, r"--on-nan rewind continues from .*: give --save and --save-interval, too"),
        ({"loss_spike_factor": 2.0}, {}, r"--loss-spike-factor 2.0 continues from an earlier checkpoint"),
        ({"loss_spike_steps": 2}, {}, r"--loss-spike-steps 2 has no effect without --loss-spike-factor"),
        ({"on_nan": "skip"}, {"engine": "deepspeed"}, r"deepspeed does not run with --on-nan skip: DeepSpeed gives"),
    ],
)
def test_what_is_refused(faults: dict[str, Any], change_to: dict[str, Any], match: str) -> None:
    base = replace(change(BASE, "checkpoint", save=None), faults=FaultConfig(**faults))
    with pytest.raises(ValueError, match=match):
        validate(change(base, "engine", **change_to))
