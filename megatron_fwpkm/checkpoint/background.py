"""Checkpoints written by a forked process per rank while training goes on.

A fork shares the parent's pages until one side writes, so the child sees slow and fast weights exactly as they were at
the fork, without a copy beforehand. Tensors on a GPU are copied to the host first. Planning and finishing need all
ranks and are done by the training processes; only the writing is left to the children.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.state_dict_saver import (
    save_state_dict_async_finalize,
    save_state_dict_async_plan,
)
from torch import Tensor
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

from ..distributed.megatron_versions import adapt_writers
from ..processes.parent_death import end_with_parent
from .results_queue import new_results_queue


class BackgroundWriter:
    """A checkpoint on its way to the disk. Every method is called by every rank."""

    def __init__(self, requests: list[AsyncRequest]) -> None:
        """Fork the writers."""
        self._queue = AsyncCallsQueue()
        for request in requests:
            if request.async_fn is not None:
                request = request._replace(async_fn=partial(_write, request.async_fn))
            self._queue.schedule_async_request(request)

    def finish(self, *, wait: bool) -> bool:
        """Whether every rank's files are complete; with `wait`, wait until they are.

        Raises CheckpointException (torch.distributed.checkpoint) on every rank when a writer failed on one.
        """
        self._queue.maybe_finalize_async_calls(blocking=wait)
        return bool(self._queue.get_num_unfinalized_calls() == 0)

    def abort(self) -> None:
        """Kill this rank's writers, which have failed or are no longer needed."""
        while self._queue.async_calls:
            process = self._queue.async_calls.popleft().async_caller.process
            if process is not None:
                process.kill()  # its own children end with it because of `end_with_parent`
                process.join()


def _write(function: Callable[..., None], *arguments: Any, **named: Any) -> None:
    """Body of a forked writer."""
    end_with_parent()
    function(*arguments, **named)


class _Writer(FileSystemWriterAsync):
    """Megatron's writer with its own queue: all others of a process share one and mix up their results."""

    results_queue: Any

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        """Stage what `plan` says, as Megatron does."""
        super().prepare_write_data(plan, planner)
        if self.results_queue is not None:
            self.results_queue = new_results_queue()


@cache
def adapt_megatrons_writers() -> None:
    """Make Megatron's writers, also in the foreground, end with the run and answer over a queue that survives signals.

    Their own error messages are silenced: the run reports errors itself, with rank and file.
    """
    adapt_writers(end_with_parent)
    filesystem_async.logger.setLevel(logging.CRITICAL)
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = new_results_queue()


def request_to_save(state: dict[str, Tensor], folder: Path) -> AsyncRequest:
    """Plan to save tensors and DTensors into `folder` as torch.distributed.checkpoint does; writing comes later."""
    writer = _Writer(folder, thread_count=1)
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    planned = save_state_dict_async_plan(state, writer, planner=planner)[0]
    write, preload, arguments = writer.get_save_function_and_args()
    return AsyncRequest(write, arguments, [lambda: save_state_dict_async_finalize(*planned)], preload_fn=preload)
