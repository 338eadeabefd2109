"""A rank of a run to which something happens: `python -m tests.training.faulty_run FAULT pretrain-flags...`.

FAULT is JSON: {"rank": 1, "when": "save" or "step", "count": 2, "signal": "SIGKILL"}: at the count-th save or step of
this process, the rank sends itself the signal. With "hang" in the place of "signal" it sleeps for minutes: "python", or
"gil" in a C call that holds the interpreter. With {"rank": 0, "when": "write", "mark": FILE, "failing": "model"} the
processes that write checkpoints make FILE and go on for minutes; one that writes into `model` fails. An empty object
leaves the run alone. "attempts" bounds the starts by torchrun that a fault happens in, and "spoil": [18, 20] gives the
samples at these positions a loss that is NaN.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

LIMIT = 150


def strike(place: type, method: str, count: int, fault: signal.Signals | Callable[[], object]) -> None:
    """Let this process send itself a signal, or call `fault`, when a method is called for the count-th time."""
    original: Callable[..., Any] = getattr(place, method)
    calls = 0

    def replacement(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            if isinstance(fault, signal.Signals):
                os.kill(os.getpid(), fault)
            else:
                fault()
        return original(*args, **kwargs)

    setattr(place, method, replacement)


def ranks(
    argv: list[str],
    fault: dict[str, Any],
    folder: Path,
    limit: float = LIMIT,
    size: int = 2,
    own: Mapping[int, Sequence[str]] | None = None,
) -> list[tuple[int, str]]:
    """(exit status, output) of the ranks of a run, as a launcher would start them; a stopped rank is killed last.

    The store is held here, as torchrun's agent holds it, so that the system chooses its port and nobody can take it.
    Output goes to files in `folder`: helper processes of a rank that was killed would keep a pipe open. `own` adds
    words to the command lines of single ranks.
    """
    import torch.distributed as dist

    from tests.test_pretrain import environment

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=limit))
    everywhere = {
        **environment(),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    command = [sys.executable, "-m", "tests.training.faulty_run", json.dumps(fault), *argv]
    outputs = [folder / f"output_{rank}" for rank in range(size)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank, output in enumerate(outputs):
            environ = {**everywhere, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            words = [*command, *(own or {}).get(rank, ())]
            with output.open("wb") as file:
                processes.append(
                    subprocess.Popen(
                        words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environ, start_new_session=True
                    )
                )
        for rank in sorted(range(size), key=lambda rank: rank == fault.get("rank")):
            if fault.get("signal") == "SIGSTOP" and rank == fault["rank"]:
                processes[rank].kill()
            processes[rank].wait(limit)
        return [(p.returncode, output.read_text()) for p, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.wait()


def hold_writers(mark: str, failing: str | None) -> None:
    """Let whatever writes files of checkpoints take minutes, or fail where a part of the path is `failing`."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    write = FileSystemWriterAsync.write_preloaded_data

    def replacement(*args: Any, write_bucket: Any, **kwargs: Any) -> Any:
        path = Path(write_bucket[0])
        if failing in path.parts:
            return write(*args, write_bucket=(path / "no folder", *write_bucket[1:]), **kwargs)
        Path(mark).touch()
        time.sleep(600)

    FileSystemWriterAsync.write_preloaded_data = staticmethod(replacement)


def main() -> int:
    """Arm the fault and train."""
    import pretrain
    from megatron_fwpkm.checkpoint.fast_weight_store import FastWeightStore
    from megatron_fwpkm.config.cli import run_cli
    from megatron_fwpkm.engines.megatron import MegatronEngine

    fault = json.loads(sys.argv[1])
    if "spoil" in fault:
        from tests.training.test_recovery import spoil_data

        spoil_data(pytest.MonkeyPatch(), *fault["spoil"])
    strikes = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < fault.get("attempts", 1)
    if strikes and "rank" in fault and str(fault["rank"]) == os.environ.get("RANK", "0"):
        hangs = {"python": lambda: time.sleep(600), "gil": lambda: ctypes.PyDLL(None).sleep(600)}
        number = hangs[fault["hang"]] if "hang" in fault else signal.Signals[fault.get("signal", "SIGKILL")]
        if fault["when"] == "write":
            hold_writers(fault["mark"], fault.get("failing"))
        elif fault["when"] == "save":  # the slow weights lie on disk by then, the fast weights and the record do not
            for method in ("save", "request_to_save"):
                strike(FastWeightStore, method, fault["count"], number)
        else:
            strike(MegatronEngine, "train_step", fault["count"], number)
    return run_cli(pretrain.main, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
