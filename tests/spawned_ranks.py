"""Runs a function in several gloo processes, as torchrun would, and says which rank failed and why.

The processes meet over a file, so that no port has to be found free. Every rank writes its outcome and its output into
the run's folder; the first failure, or the time limit, ends all of them.
"""

from __future__ import annotations

import datetime
import faulthandler
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.multiprocessing as multiprocessing

_POLL_SECONDS = 0.02
_START_SECONDS = 150
"""Within which all ranks must have begun: a loaded machine imports slowly, and that says nothing of what is tested."""


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Call `function(rank, world_size, *args)` in `world_size` new processes joined in a gloo group.

    `function` must be importable (top level of a module); arguments and results must be picklable. Returns the results
    by rank. Raises AssertionError with the failing rank, its traceback or exit status and the end of its output;
    `timeout` seconds after the last rank has begun it names the ranks that had not finished and where they stood. No
    process outlives the call.
    """
    folder = Path(tempfile.mkdtemp(prefix="run_distributed_"))
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run_rank, args=(function, rank, world_size, args, str(folder), timeout), daemon=False)
        for rank in range(world_size)
    ]
    try:
        for process in processes:
            process.start()
        _wait(processes, folder, timeout)
        return [_outcome(folder, rank)[1] for rank in range(world_size)]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(processes: list[BaseProcess], folder: Path, timeout: float) -> None:
    """Return when all ranks have ended well; raise AssertionError on the first failure or at the time limit."""
    deadline, begun = time.monotonic() + _START_SECONDS, False
    while True:
        if not begun and all((folder / f"begun_{rank}").exists() for rank in range(len(processes))):
            deadline, begun = time.monotonic() + timeout, True
        codes = [process.exitcode for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            raise AssertionError(_describe_failure(failed, codes, folder))
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline:
            late = [rank for rank, code in enumerate(codes) if code is None]
            for rank in late:
                os.kill(processes[rank].pid or 0, signal.SIGUSR1)  # the rank writes its stack into its output
            _await_stacks(folder, late)
            output = "".join(_output(folder, rank) for rank in late)
            what = f"finished after {timeout:g} s" if begun else f"begun after {_START_SECONDS} s"
            raise AssertionError(f"rank(s) {late} of {len(codes)} had not {what}{output}")
        time.sleep(_POLL_SECONDS)


def _await_stacks(folder: Path, ranks: list[int]) -> None:
    """Return once the ranks have written their stacks, or after ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end and any("(most recent call first)" not in _output(folder, rank) for rank in ranks):
        time.sleep(_POLL_SECONDS)


def _describe_failure(failed: list[int], codes: list[int | None], folder: Path) -> str:
    """The failure that came first: a rank that raised earliest, else the rank that died."""
    spoke = [rank for rank in failed if (folder / f"outcome_{rank}").exists()]
    dead = [rank for rank in failed if rank not in spoke]
    if dead:  # it left no word; the others most likely fail because it is gone
        rank = dead[0]
        code = codes[rank]
        assert code is not None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        return f"rank {rank} of {len(codes)} {how}{_output(folder, rank)}"
    # A rank that had succeeded fails later only because its peers left it waiting.
    succeeded, message, _, rank = min((_outcome(folder, rank) for rank in spoke), key=lambda outcome: outcome[::2])
    message = "its function had returned, the final barrier failed" if succeeded else message
    return f"rank {rank} of {len(codes)} failed:\n{message}{_output(folder, rank)}"


def _outcome(folder: Path, rank: int) -> tuple[bool, Any, float, int]:
    """(succeeded, result or traceback, time, rank) that a rank left."""
    with open(folder / f"outcome_{rank}", "rb") as file:
        return pickle.load(file)


def _output(folder: Path, rank: int) -> str:
    path = folder / f"output_{rank}"
    text = path.read_text(errors="replace")[-3000:].strip() if path.exists() else ""
    return f"\n--- output of rank {rank} ---\n{text}\n" if text else ""


def _leave_outcome(folder: Path, rank: int, succeeded: bool, value: Any) -> None:
    """Write atomically, so that a reader never sees half an outcome."""
    partial = folder / f".outcome_{rank}"
    with open(partial, "wb") as file:
        pickle.dump((succeeded, value, time.time(), rank), file)
    partial.rename(folder / f"outcome_{rank}")


def _redirect_output(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _run_rank(
    function: Callable[..., Any], rank: int, world_size: int, args: tuple[Any, ...], folder_name: str, timeout: float
) -> None:
    """Body of one process."""
    folder = Path(folder_name)
    _redirect_output(folder / f"output_{rank}")
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    size = str(world_size)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    try:
        import torch
        import torch.distributed

        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo",
            init_method=(folder / "rendezvous").as_uri(),
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=_START_SECONDS + 2 * timeout),  # the parent's limit comes first
        )
        (folder / f"begun_{rank}").touch()
        result = function(rank, world_size, *args)
        _leave_outcome(folder, rank, True, result)
        torch.distributed.barrier()  # nobody leaves while others still talk to it
        torch.distributed.destroy_process_group()
    except BaseException:
        if not (folder / f"outcome_{rank}").exists():
            _leave_outcome(folder, rank, False, traceback.format_exc())
        sys.exit(1)
