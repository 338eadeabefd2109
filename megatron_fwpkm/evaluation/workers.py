"""Independent tasks in several processes, with results as they finish."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..processes.parent import end_with_parent, shielded

_POLL_SECONDS = 1.0


def run_in_processes(
    workers: int, tasks: Sequence[Any], make_worker: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]
) -> Iterator[Any]:
    """Results of `make_worker(*arguments)(task)` for every task, in the order they are finished.

    `make_worker` is called once in every process; it, its arguments, tasks and results must be picklable. Tasks are
    dealt out in turn, so neighbours of equal size spread evenly. Leaving the iterator early ends the processes.

    Raises:
        ValueError, OSError: as raised in a process.
        ChildProcessError: a process died.
        RuntimeError: a process failed otherwise; the message has its traceback.
    """
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    workers = min(workers, len(tasks))
    threads = max(1, (os.cpu_count() or 1) // workers)
    processes = [
        context.Process(
            target=_work, args=(results, list(tasks[rank::workers]), make_worker, arguments, threads), daemon=True
        )
        for rank in range(workers)
    ]
    try:
        with shielded(signal.SIGINT):
            for process in processes:
                process.start()
        for _ in tasks:
            yield _next_result(results, processes)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()


def _next_result(results: Any, processes: Sequence[Any]) -> Any:
    while True:
        # Looked at before the wait: what a process sent before it ended is in the queue by then.
        dead = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
        try:
            kind, value = results.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if dead:
                raise ChildProcessError(
                    f"a worker process died with status {dead[0]} (-9 usually means out of memory: use fewer "
                    "--workers); finished samples are kept, run the same command again to continue"
                ) from None
            continue
        if kind == "error":
            raise value
        return value


def _work(
    results: Any, tasks: Sequence[Any], make_worker: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...],
    threads: int,
) -> None:  # fmt: skip
    """Body of a process."""
    end_with_parent()
    try:
        import torch

        torch.set_num_threads(threads)
        worker = make_worker(*arguments)
        for task in tasks:
            results.put(("result", worker(task)))
    except (ValueError, OSError) as error:
        results.put(("error", error))
    except Exception:
        results.put(("error", RuntimeError(f"a worker process failed:\n{traceback.format_exc()}")))
