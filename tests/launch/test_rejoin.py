"""A node that is lost and started again: two agents of torchrun on this machine, started by multi_node.sh."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_fwpkm.checkpoint.manager import published
from tests.launch.conftest import ROOT
from tests.test_pretrain import environment, flags, write_dataset

LIMIT = 240


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, at most LIMIT seconds."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {LIMIT} s"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_a_node_that_is_started_again_joins_the_run(tmp_path: Path) -> None:
    # The agents find each other in this store, whose port the system chooses; otherwise the first node would hold it.
    limit = datetime.timedelta(seconds=LIMIT)
    store = dist.TCPStore(socket.gethostname(), 0, is_master=True, wait_for_workers=False, timeout=limit)
    save = tmp_path / "run"
    data = write_dataset(tmp_path / "numbers")
    words = flags(data, save=save, resume=True, train_iters=300, save_interval=50, eval_iters=0, split="1,0,0")
    settings = environment() | {
        "PYTHON": sys.executable, "NNODES": "2", "GPUS_PER_NODE": "1", "RDZV_ID": "run",
        "LOG_DIR": str(tmp_path / "logs"),
        "RDZV_ENDPOINT": f"{socket.gethostname()}:{store.port}",
    }  # fmt: skip
    nodes: list[subprocess.Popen[bytes]] = []

    def start_node() -> Path:
        output = tmp_path / f"output_{len(nodes)}"
        with output.open("wb") as file:
            command = ["bash", str(ROOT / "examples/launch/multi_node.sh"), *words]
            # Whoever joins a run finds nobody for a pre-flight.
            variables = settings | {"PREFLIGHT": "0" if len(nodes) == 2 else "1"}
            nodes.append(subprocess.Popen(command, env=variables, stdout=file, stderr=file, start_new_session=True))
        return output

    try:
        outputs = [start_node(), start_node()]
        until(lambda: save.exists() and bool(published(save)), "the first checkpoint")
        nodes[1].kill()  # the agent alone: its worker notices
        until(lambda: any("is gone" in output.read_text() for output in outputs), "a rank that notices")
        outputs.append(start_node())
        until(lambda: nodes[0].poll() is not None and nodes[2].poll() is not None, "the end")
        everything = "\n".join(output.read_text() for output in outputs)
        assert (nodes[0].returncode, nodes[2].returncode) == (0, 0), everything
        assert published(save)[-1].name == "iter_0000300"
        assert "pre-flight passed" in everything
        assert f"resumed from {save}/iter_" in everything
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
