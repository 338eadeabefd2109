"""Profiling some iterations of a training run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from .field_metadata import NOT_COMPARED, AtLeast

if TYPE_CHECKING:
    from .pretrain import PretrainConfig


@dataclass(frozen=True)
class ProfilingConfig:
    """Traces of some iterations, and of the device's memory."""

    profile: Annotated[bool, NOT_COMPARED] = False
    """Profile the iterations after --profile-step-start up to --profile-step-end: between the start and the stop of
    CUDA's profiler, for `nsys profile --capture-range=cudaProfilerApi`, or with --use-pytorch-profiler."""
    profile_step_start: Annotated[int, AtLeast(0), NOT_COMPARED] = 10
    """With --profile: number of iterations before the first one that is profiled."""
    profile_step_end: Annotated[int, AtLeast(1), NOT_COMPARED] = 12
    """With --profile: the last iteration that is profiled."""
    profile_ranks: Annotated[tuple[int, ...], NOT_COMPARED] = (0,)
    """With --profile: the ranks that are profiled."""
    use_pytorch_profiler: Annotated[bool, NOT_COMPARED] = False
    """With --profile: use PyTorch's profiler, which needs no GPU; every profiled rank writes a trace to --log-dir."""
    record_memory_history: Annotated[bool, NOT_COMPARED] = False
    """Record the allocations of the last rank's GPU and write them to --memory-snapshot-path at every
    --log-interval."""
    memory_snapshot_path: Annotated[str, NOT_COMPARED] = "snapshot.pickle"
    """With --record-memory-history: the file, by default in --log-dir; https://pytorch.org/memory_viz shows it."""


def profiling_problems(config: PretrainConfig, world_size: int | None) -> Iterator[str]:
    """A sentence for every violated rule, for `world_size` processes where that is known."""
    chosen, defaults = config.profiling, ProfilingConfig()
    needs = {"memory_snapshot_path": "record_memory_history"}
    needs |= dict.fromkeys(("profile_step_start", "profile_step_end", "profile_ranks"), "profile")
    needs["use_pytorch_profiler"] = "profile"
    for name, needed in needs.items():
        if not getattr(chosen, needed) and getattr(chosen, name) != getattr(defaults, name):
            yield f"--{_flag(name)} has no effect without --{_flag(needed)}: add it"
    if chosen.profile:
        yield from _window(config)
        yield from _ranks(chosen.profile_ranks, world_size)


def _window(config: PretrainConfig) -> Iterator[str]:
    start, end = config.profiling.profile_step_start, config.profiling.profile_step_end
    last = config.training.train_iters
    if start >= end:
        yield (
            f"--profile-step-start {start} must be less than --profile-step-end {end}: the iterations from {start + 1} "
            f"to {end} are profiled"
        )
    elif end > last:
        yield (
            f"--profile-step-end {end} is never reached with --train-iters {last}: use --profile-step-end of at most "
            f"{last}, and a --profile-step-start below it"
        )


def _ranks(ranks: tuple[int, ...], world_size: int | None) -> Iterator[str]:
    if not ranks:
        yield "--profile-ranks has no ranks: give at least one, or remove --profile"
    for rank in dict.fromkeys(ranks):
        if rank < 0 or (world_size is not None and rank >= world_size):
            known = "" if world_size is None else f", and this run has {world_size}"
            yield f"--profile-ranks {rank} does not exist: ranks count from 0{known}"


def _flag(name: str) -> str:
    return name.replace("_", "-")
