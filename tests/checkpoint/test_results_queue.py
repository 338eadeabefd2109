"""The process that passes on what writers have to say: one for all saves, deaf to SIGTERM, gone with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_fwpkm.checkpoint import results_queue
from tests.test_pretrain import environment

_PARENT = """
import sys, time
from megatron_fwpkm.checkpoint import results_queue
if __name__ == "__main__":
    results_queue.new_results_queue()
    assert "torch" not in sys.modules and "megatron" not in sys.modules
    print(results_queue._manager()._process.pid, flush=True)
    time.sleep(100)
"""


def test_one_process_that_outlives_sigterm() -> None:
    first, second = results_queue.new_results_queue(), results_queue.new_results_queue()
    first.put("one")
    os.kill(results_queue._manager()._process.pid, signal.SIGTERM)  # type: ignore[attr-defined]
    second.put("two")
    assert first.get(timeout=60) == "one" and second.get(timeout=60) == "two"


_MEGATRONS = """
import multiprocessing, os, signal
from megatron.core.dist_checkpointing.strategies import filesystem_async
if __name__ == "__main__":
    names = ("get_write_results_queue", "_get_write_results_queue")
    queue = next(getattr(filesystem_async, name) for name in names if hasattr(filesystem_async, name))()
    (helper,) = multiprocessing.active_children()
    os.kill(helper.pid, signal.SIGTERM)
    helper.join()
    try:
        queue.put("two")
    except (ConnectionError, EOFError) as error:
        print("lost:", type(error).__name__)
"""


@pytest.mark.slow
def test_megatrons_own_queue_is_lost_with_sigterm(tmp_path: Path) -> None:
    script = tmp_path / "megatrons_queue.py"
    script.write_text(_MEGATRONS)
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment(), timeout=120
    )
    assert run.stdout.startswith("lost: "), (run, "if it outlives SIGTERM, ours may go")


def test_it_is_gone_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        helper = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 100
    while Path(f"/proc/{helper}").exists():
        assert time.monotonic() < deadline, "the process with the queues was left behind"
        time.sleep(0.02)
