"""--profile and --record-memory-history: traces of some iterations, by PyTorch's profiler or by nsys."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..config import PretrainConfig
from ..distributed.startup import World
from ..ops.named_ranges import named_range, ranges_shown_by

logger = logging.getLogger("megatron_fwpkm")


def check_profiling(config: PretrainConfig, device: torch.device) -> None:
    """Raise ValueError where the device has nothing of what is to be recorded."""
    chosen = config.profiling
    if device.type == "cuda":
        return
    if chosen.profile and not chosen.use_pytorch_profiler:
        raise ValueError(
            f"--profile starts and stops CUDA's profiler for nsys, but this run is on {device}: add "
            "--use-pytorch-profiler, which needs no GPU"
        )
    if chosen.record_memory_history:
        raise ValueError(
            f"--record-memory-history records the allocations of a GPU, but this run is on {device}: remove it"
        )


class RunProfiler:
    """Profiles some iterations on this rank if --profile asks for it, and keeps the history of its GPU's memory."""

    def __init__(self, config: PretrainConfig, world: World, log_dir: Path, iteration: int) -> None:
        """`iteration` is the last one of the run so far; files go to `log_dir`."""
        self._chosen, self._world, self._log_dir = config.profiling, world, log_dir
        self._wanted = self._chosen.profile and world.rank in self._chosen.profile_ranks
        self._open = ExitStack()
        """Holds the profile that is under way."""
        self._first: int | None = None
        """The first iteration of that profile."""
        self._last = iteration
        self._log_interval, self._final = config.logging.log_interval, config.training.train_iters
        self._snapshot: Path | None = None
        if self._chosen.record_memory_history and world.rank == world.size - 1:
            self._snapshot = log_dir / self._chosen.memory_snapshot_path
            torch.cuda.memory._record_memory_history()
        if self._chosen.profile and iteration >= self._chosen.profile_step_end and world.is_main:
            logger.warning(
                "nothing is profiled: the run continues after iteration %d, and --profile-step-end is %d",
                iteration,
                self._chosen.profile_step_end,
            )

    def __enter__(self) -> RunProfiler:
        """Use as a context manager ends a profile that is under way when the run ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what there is of a profile."""
        self._open.close()

    @contextmanager
    def step(self, iteration: int) -> Iterator[None]:
        """Around a step; `iteration` are done before it."""
        start, end = self._chosen.profile_step_start, self._chosen.profile_step_end
        if self._wanted and self._first is None and start <= iteration < end:
            self._first = iteration + 1
            self._open.enter_context(self._trace() if self._chosen.use_pytorch_profiler else _captured_by_nsys())
        with named_range(f"iteration {iteration + 1}"):
            yield
        self._last = iteration + 1
        if self._last == end:
            self._open.close()
        if self._snapshot is not None and (self._last % self._log_interval == 0 or self._last == self._final):
            self._snapshot.parent.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(self._snapshot))

    @contextmanager
    def _trace(self) -> Iterator[None]:
        """Record a trace with PyTorch's profiler, and write it at the end."""
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (self._world.device.type == "cuda")]
        with profile(activities=activities) as found, ranges_shown_by(record_function):
            yield
        path = self._log_dir / f"trace_rank{self._world.rank}_steps{self._first}-{self._last}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(path))
        logger.info("the trace of iterations %d to %d is in %s", self._first, self._last, path)


@contextmanager
def _captured_by_nsys() -> Iterator[None]:
    """What runs inside is captured by `nsys profile --capture-range=cudaProfilerApi`."""
    torch.cuda.cudart().cudaProfilerStart()
    try:
        with ranges_shown_by(torch.cuda.nvtx.range):
            yield
    finally:
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()
