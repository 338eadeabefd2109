"""From one started process to one rank of a run: threads, the process group, determinism, logging."""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ..config import ParallelConfig, TrainingConfig
from ..processes import parent
from ..processes.freed_memory import keep_freed_memory
from . import flight_recorder
from .launch_variables import Launch, read_launch
from .launcher_loss import LauncherLoss
from .liveness import RollCall, within
from .megatron_versions import silence_notices
from .rendezvous import meet
from .same_start import check_same_start

logger = logging.getLogger("megatron_fwpkm")

_STORE_SECONDS = 10.0
_LAST_SECONDS = 60


@dataclass(frozen=True)
class World:
    """Where this process stands among all."""

    rank: int
    size: int
    device: torch.device
    roll_call: RollCall | None = None
    """Where the ranks of a run with several record what they are doing."""
    restarts: int = 0
    """How often torchrun has started the processes of this run again."""

    def mark(self, doing: str) -> None:
        """Record what this rank is doing now."""
        if self.roll_call is not None:
            self.roll_call.mark(doing)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which logs and writes for all ranks."""
        return self.rank == 0


class RankFailedError(ValueError):
    """An error of one rank of several; the message begins with the rank."""


@contextmanager
def distributed_run(
    parallel: ParallelConfig,
    training: TrainingConfig,
    described: Mapping[str, str] | None = None,
    store: dist.Store | None = None,
    *,
    record_collectives: bool = False,
) -> Iterator[World]:
    """Everything between an ordinary process and a rank of a run, and its orderly end.

    torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, ...) are used where they are set; without them the run has one
    process. A process group that exists already is used and left alone. An error leaves the groups as they are, because
    taking them down would wait for ranks that will not come; it ends the run with the rank named, and an error that
    all ranks share is said once.

    Args:
        parallel: the layout.
        training: threads, determinism.
        described: what must be the same on all ranks (`same_start.describe_start`); compared before anything is built.
        store: where the ranks have met already.
        record_collectives: keep the last collectives (`flight_recorder`), which NCCL always does.

    Raises:
        ValueError: variables of a launcher that do not fit together, ranks that do not come or were started with
            something else, or nccl without CUDA.
    """
    use_one_device_queue(parallel)
    owned = not dist.is_initialized()
    launch = read_launch(os.environ) if owned else None
    parent.end_forks_with_parent()
    loss = LauncherLoss(launch) if launch is not None and launch.by_torchrun else None
    if not torch.cuda.is_available():
        keep_freed_memory()
    set_threads(training)
    set_determinism(training)
    if record_collectives:
        flight_recorder.switch_on()
    world = _join(parallel, launch, store)
    set_up_logging(world)
    assert world.roll_call is not None
    if loss is not None:
        loss.tell = world.roll_call.leave_error
    try:
        world.mark("starting")
        if described is not None and world.size > 1:
            store = dist.distributed_c10d._get_default_store()
            check_same_start(store, world.rank, world.size, described)
        yield world
    except BaseException as error:
        if loss is not None:
            loss.end_if_gone()  # what fails then fails for that reason
        _fail(world, error, owned)
        raise
    _leave(world, owned)


def _fail(world: World, error: BaseException, owned: bool) -> None:
    """Say which rank fails and why; raises what says it, and returns where `error` itself is to be raised."""
    assert world.roll_call is not None
    if world.size == 1:
        _leave(world, owned)
        return
    _end_soon(owned)
    who = f"rank {world.rank} of {world.size}"
    if isinstance(error, (ValueError, OSError)):
        if _already_said(str(error)):
            raise SystemExit(1) from None
        _leave_error(world.roll_call, error)
        raise RankFailedError(f"{who}: {error}") from error
    if (explanation := world.roll_call.explain(error)) is not None:
        raise RankFailedError(f"{who} cannot continue: {explanation}") from error
    _leave_error(world.roll_call, error)
    if not isinstance(error, (SystemExit, KeyboardInterrupt)):
        print(f"{who} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _end_soon(owned: bool) -> None:
    """Let the kernel end this failing process in a minute, whatever it still waits for.

    Without its network a rank can hang in what Python and the communication libraries do at exit.
    """
    if owned and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_LAST_SECONDS)


def _leave_error(roll_call: RollCall, error: BaseException) -> None:
    """Tell the other ranks, if the store still stands, why this one ends."""
    with suppress(RuntimeError, ValueError):
        roll_call.leave_error(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error))


def use_one_device_queue(parallel: ParallelConfig) -> None:
    """Have one queue where Megatron orders communication before computation by it; must come before CUDA starts."""
    if parallel.tensor_model_parallel_size > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def silence_known_warnings() -> None:
    """Hide the warnings of megatron-core about optional packages and its own deprecations."""
    for text in (
        "Transformer Engine and Apex",
        "Apex is not installed",
        "full scope is deprecated",
        "`load_state_dict` is deprecated",
        "`torch.distributed.*` is deprecated",
        "The .grad attribute of a Tensor that is not a leaf",
    ):
        warnings.filterwarnings("ignore", message=text)
    silence_notices()


def set_threads(training: TrainingConfig) -> None:
    """CPU threads of this process: --num-threads, else the cores that this process may use over the local processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(share if training.num_threads is None else training.num_threads)


def set_determinism(training: TrainingConfig) -> None:
    """Make torch refuse nondeterministic kernels, or not (--deterministic)."""
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Filling new tensors costs time and decides nothing here.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Only a warning where torch has no deterministic kernel to offer, such as cumulative sums on CUDA.
    torch.use_deterministic_algorithms(training.deterministic, warn_only=True)


def memory_bytes(device: torch.device) -> int:
    """All memory of a GPU, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def set_up_logging(world: World) -> None:
    """Plain lines on standard output from rank 0; warnings of the other ranks with their rank."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.StreamHandler(sys.stdout)
    prefix = "" if world.is_main else f"[rank {world.rank}] "
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if world.is_main else logging.WARNING)
    logger.propagate = False


def _join(parallel: ParallelConfig, launch: Launch | None, met: dist.Store | None) -> World:
    """Join the process group (or make one of one process) and choose the device."""
    backend = parallel.distributed_backend
    if backend == "auto":
        backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl" and not torch.cuda.is_available():
        raise ValueError("--distributed-backend nccl needs CUDA, which is not available here; use gloo or auto")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {local_rank} has no GPU ({torch.cuda.device_count()} visible): start at most one process "
                "per GPU"
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    if not dist.is_initialized():
        timeout = datetime.timedelta(minutes=parallel.distributed_timeout_minutes)
        if backend == "nccl":  # a collective that fails or times out must end the process, not wait for ever
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
            flight_recorder.switch_on()
        store: dist.Store = dist.HashStore()
        rank, size = 0, 1
        if launch is not None:
            rank, size = launch.rank, launch.world_size
            try:
                store = meet(launch, parallel.rendezvous_timeout_minutes * 60) if met is None else met
            except ValueError as error:
                raise RankFailedError(f"rank {rank} of {size}: {error}") from None
            store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    rank, size = dist.get_rank(), dist.get_world_size()
    return World(rank, size, device, RollCall(rank, size), restarts=0 if launch is None else launch.attempt)


def _already_said(message: str) -> bool:
    """Whether another rank has reported the same error; the ranks meet in the process group's store."""
    key = "error/" + hashlib.sha256(message.encode()).hexdigest()[:16]
    try:
        return within(_STORE_SECONDS, lambda: dist.distributed_c10d._get_default_store().add(key, 1)) > 1
    except RuntimeError:  # the store lived in a rank that is gone, or behind a network that is
        return False


def _leave(world: World, owned: bool) -> None:
    """Take down what this run has made."""
    if world.roll_call is not None:
        world.roll_call.close()
    if owned:
        dist.destroy_process_group()
