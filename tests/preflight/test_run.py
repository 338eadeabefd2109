"""tools/preflight.py as it is started: alone, and as two nodes of one process each, alike and not."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.test_pretrain import ROOT, environment, flags, write_dataset
from tests.tools.in_process import run_tool

LIMIT = 100
QUICK = ["--preflight-bytes", "65536", "--preflight-timeout", str(LIMIT)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


def two_nodes(argv: list[str], folder: Path, of_the_second: list[str]) -> list[tuple[int, str, str]]:
    """(exit status, output, errors) of two nodes; the second has words of its own.

    Their store is held here, as torchrun holds it, so that the system chooses a free port.
    """
    limit = datetime.timedelta(seconds=LIMIT)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    common = environment() | {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "tools/preflight.py"), *argv, *QUICK]
    nodes = [
        subprocess.Popen(
            command + (of_the_second if rank else []), env=common | {"RANK": str(rank)}, text=True, cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        return [(node.returncode, *texts) for node in nodes for texts in [node.communicate(timeout=LIMIT)]]
    finally:
        for node in nodes:
            node.kill()


@pytest.mark.slow
def test_two_nodes_that_are_alike(dataset: str, tmp_path: Path) -> None:
    report = tmp_path / "reports" / "preflight.json"
    argv = flags(dataset, save=tmp_path / "run", tensor_model_parallel_size=2, preflight_json=report)
    (status, output, errors), other = two_nodes(argv, tmp_path, [])
    assert (status, errors) == (0, ""), output + errors
    assert other == (0, "", "")
    lines = output.splitlines()
    assert lines[0].split()[:3] == ["node", "host", "ranks"]
    assert lines[1].split()[0] == "0" and lines[2].split()[0] == "1" and "torch 2." in lines[2]
    assert any(line.startswith("tensor-parallel  1 ") for line in lines)
    assert lines[-1].startswith("pre-flight passed in ") and "2 nodes, 2 processes, 2 groups" in lines[-1]
    told = json.loads(report.read_text())
    assert told["passed"] and [node["ranks"] for node in told["nodes"]] == [[0], [1]]
    assert [group["kind"] for group in told["groups"]] == ["all ranks", "tensor-parallel"]
    assert all(group["gigabytes_per_second"] > 0 for group in told["groups"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reports"], "nothing else is left behind"


@pytest.mark.slow
def test_a_wrong_option_and_missing_data_on_one_node(dataset: str, tmp_path: Path) -> None:
    report = tmp_path / "preflight.json"
    argv = flags(dataset, save=tmp_path / "run", preflight_json=report)
    ended = two_nodes(argv, tmp_path, ["--data-path", str(tmp_path / "gone"), "--lr", "7"])
    for status, _, errors in ended:
        assert status == 1
        assert errors.startswith("error: pre-flight failed, 3 problems:") and errors.count("\n") == 4
        assert f": the dataset {tmp_path}/gone cannot be read" in errors and "node 1 (" in errors
        assert "--lr is 0.01 on node 0 (" in errors and " and 7.0 on node 1 (" in errors
    assert not json.loads(report.read_text())["passed"]


def test_one_process(dataset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "NNODES", "MASTER_ADDR")]:
        monkeypatch.delenv(name)
    done = run_tool(capsys, "preflight", *flags(dataset), *QUICK)
    assert done.returncode == 0, done.stderr
    assert "pre-flight passed in" in done.stdout and "1 node, 1 process" in done.stdout
    wrong = run_tool(capsys, "preflight", *flags(dataset), "--preflight-timeout", "0")
    assert wrong.returncode == 2 and "--preflight-timeout" in wrong.stderr
