"""--profile: the trace of a run on the CPU is read; nsys and the GPU's memory with a pretended torch.cuda."""

from __future__ import annotations

import gzip
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import LoggingConfig, PretrainConfig, ProfilingConfig, TrainingConfig
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.distributed.startup import World
from megatron_fwpkm.ops.named_ranges import named_range
from megatron_fwpkm.training.profiler import RunProfiler, check_profiling
from tests.docs.markdown import commands
from tests.test_pretrain import dataset, flags, losses, start  # noqa: F401

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
RUN = {"train_iters": 4, "eval_iters": 0, "log_interval": 1, "micro_batch_size": 2, "global_batch_size": 4}
ROOT = Path(__file__).resolve().parents[2]
TORCH = {"profile": True, "use_pytorch_profiler": True, "profile_step_start": 1, "profile_step_end": 3}
MEMORY = {"memory addressing", "memory read", "memory write", "memory backward", "memory addressing backward"}


def ranges(path: Path) -> list[dict[str, Any]]:
    """The named ranges of a trace."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [event for event in events if event.get("cat") == "user_annotation" and "dur" in event]


def within(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    return outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 1


def test_a_trace_says_what_a_step_does_and_changes_nothing(dataset: str, tmp_path: Path) -> None:  # noqa: F811
    plain, traced = tmp_path / "plain", tmp_path / "traced"
    shown = next(command for command in commands(ROOT / "docs/profiling.md") if "pretrain.py" in command.words)
    words = [word for word in shown.words if "profile" in word and word.startswith("--")]
    assert words == ["--profile", "--use-pytorch-profiler"]
    window = {name: TORCH[name] for name in ("profile_step_start", "profile_step_end")}
    assert start(flags(dataset, log_dir=plain, **RUN)) == 0
    assert start([*flags(dataset, log_dir=traced, **RUN, **window), *words]) == 0
    assert losses(traced) == losses(plain) and len(losses(plain)) == 4
    (trace,) = traced.glob("*.json.gz")
    assert trace.name == "trace_rank0_steps2-3.json.gz"
    found = ranges(trace)
    steps = [event for event in found if event["name"].startswith("iteration ")]
    assert [step["name"] for step in steps] == ["iteration 2", "iteration 3"]
    for step in steps:
        inside = [event for event in found if within(event, step) and event is not step]
        names = [event["name"] for event in inside]
        assert {"data", "forward and backward", "optimizer", "memory of layer 2"} | MEMORY <= set(names)
        # Two micro-batches of four chunks each, all of which are written.
        assert names.count("data") == names.count("memory of layer 2") == names.count("memory backward") == 2
        assert names.count("memory read") == names.count("memory write") == 8
        (passes,) = (event for event in inside if event["name"] == "forward and backward")
        assert all(within(event, passes) for event in inside if event["name"] in MEMORY | {"data"})


def made(tmp_path: Path, iteration: int = 0, rank: int = 0, size: int = 1, **chosen: Any) -> RunProfiler:
    training, logs = TrainingConfig(train_iters=5), LoggingConfig(log_interval=2)
    config = PretrainConfig(training=training, logging=logs, profiling=ProfilingConfig(**chosen))
    return RunProfiler(config, World(rank, size, CPU), tmp_path, iteration)


def steps(profiler: RunProfiler, first: int, last: int) -> None:
    with profiler:
        for iteration in range(first, last + 1):
            with profiler.step(iteration - 1), named_range("inside"):
                pass


def test_a_run_that_ends_early_or_late_has_its_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    steps(made(tmp_path, **TORCH), 1, 2)
    steps(made(tmp_path, 2, 1, 4, **TORCH, profile_ranks=(1, 3)), 3, 5)
    steps(made(tmp_path, 0, 2, 4, **TORCH, profile_ranks=(1, 3)), 1, 5)
    names = {path.name: [event["name"] for event in ranges(path)] for path in sorted(tmp_path.iterdir())}
    assert names == {
        "trace_rank0_steps2-2.json.gz": ["iteration 2", "inside"],
        "trace_rank1_steps3-3.json.gz": ["iteration 3", "inside"],
    }
    with caplog.at_level(logging.WARNING):
        steps(made(tmp_path, 3, **TORCH), 4, 5)
    assert "nothing is profiled: the run continues after iteration 3, and --profile-step-end is 3" in caplog.text
    assert len(list(tmp_path.iterdir())) == 2


def test_nsys_captures_the_same_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Range:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            said.append(self.name)

        def __exit__(self, *_: object) -> None: ...

    cuda = SimpleNamespace(cudaProfilerStart=lambda: said.append("start"), cudaProfilerStop=lambda: said.append("stop"))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("synchronize"))
    monkeypatch.setattr(torch.cuda.nvtx, "range", Range)
    steps(made(tmp_path, profile=True, profile_step_start=1, profile_step_end=3), 1, 5)
    assert said == [
        "start", "iteration 2", "inside", "iteration 3", "inside", "synchronize", "stop",
    ]  # fmt: skip


def test_the_last_rank_writes_its_memory_s_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda: said.append("record"))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", said.append)
    steps(made(tmp_path, 0, 0, 2, record_memory_history=True), 1, 5)
    assert said == []
    steps(made(tmp_path, 0, 1, 2, record_memory_history=True, memory_snapshot_path="a/b.pickle"), 1, 5)
    assert said == ["record", *[str(tmp_path / "a" / "b.pickle")] * 3]  # after iterations 2 and 4, and the last one
    assert (tmp_path / "a").is_dir()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"profile": True}, "--profile starts and stops CUDA's profiler for nsys, but this run is on cpu: add --use"),
        ({"record_memory_history": True}, "--record-memory-history records the allocations of a GPU, but this run is"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(chosen: dict[str, Any], said: str) -> None:
    config = PretrainConfig(profiling=ProfilingConfig(**chosen))
    with pytest.raises(ValueError, match=said):
        check_profiling(config, CPU)
    check_profiling(config, CUDA)
    check_profiling(replace(config, profiling=ProfilingConfig(profile=True, use_pytorch_profiler=True)), CPU)


def test_it_is_refused_before_anything_is_written(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    assert start(flags(dataset, save=tmp_path / "run", profile=True)) == 1
    assert "--use-pytorch-profiler, which needs no GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--use-pytorch-profiler", "--use-pytorch-profiler has no effect without --profile: add it"),
        ("--profile-step-end 30", "--profile-step-end has no effect without --profile: add it"),
        ("--memory-snapshot-path x", "--memory-snapshot-path has no effect without --record-memory-history: add it"),
        ("--profile --profile-step-start 12", "--profile-step-start 12 must be less than --profile-step-end 12"),
        ("--profile --train-iters 11", "--profile-step-end 12 is never reached with --train-iters 11"),
        ("--profile --profile-ranks 0 2", "--profile-ranks 2 does not exist: ranks count from 0, and this run has 2"),
        ("--profile --profile-ranks -1", "--profile-ranks -1 does not exist"),
        ("--profile --profile-ranks none", "--profile-ranks has no ranks: give at least one"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(words: str, said: str) -> None:
    (found,) = problems(parse_pretrain(["--dry-run", *words.split()]).config, 2)
    assert said in found
