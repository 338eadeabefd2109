"""torchrun on one node and on several: the printed command, and what is refused."""

from __future__ import annotations

import shlex
import shutil
import socket

import pytest

TORCHRUN = ["python-fake", "-m", "torch.distributed.run"]
STATIC = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-a", "MASTER_PORT": "29500", "GPUS_PER_NODE": "8"}
C10D = {"NNODES": "2", "RDZV_ENDPOINT": "node-a:29500", "RDZV_ID": "run-17", "GPUS_PER_NODE": "8"}


def words(process) -> list[str]:
    """The printed command as words; the script must have succeeded."""
    assert process.returncode == 0, process.stderr
    return shlex.split(process.stdout)


def check_refused(process, *said: str) -> None:
    """Status 1 and one line of error that says all of `said`."""
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    for text in said:
        assert text in process.stderr


def test_single_node(launch, environment):
    process = launch("single_node.sh", environment | {"GPUS_PER_NODE": "4"}, "--dry-run", "--save", "a b")
    assert words(process) == [
        *TORCHRUN, "--standalone", "--nnodes=1", "--nproc-per-node=4", "pretrain.py", "--save", "a b",
    ]  # fmt: skip


def test_single_node_runs_the_command_it_prints(launch, environment, record):
    process = launch("single_node.sh", environment | {"GPUS_PER_NODE": "4"}, "--config", "x.yaml", "--dry-run")
    assert process.returncode == 0, process.stderr
    told = (record / "ranks").read_text().split(" : ", 1)[-1]
    assert told.strip().endswith("--nproc-per-node=4 pretrain.py --config x.yaml --dry-run")


def test_static_rendezvous(launch, environment):
    process = launch("multi_node.sh", environment | STATIC, "--dry-run", "--lr", "1e-3")
    assert words(process) == [
        *TORCHRUN, "--nnodes=2", "--nproc-per-node=8", "--node-rank=1", "--master-addr=node-a", "--master-port=29500",
        "pretrain.py", "--lr", "1e-3",
    ]  # fmt: skip


def test_c10d_rendezvous(launch, environment):
    settings = environment | C10D | {"TORCHRUN_ARGS": "--shutdown_timeout 300"}
    process = launch("multi_node.sh", settings, "--dry-run", "-x")
    assert words(process) == [
        *TORCHRUN, "--nnodes=2", "--nproc-per-node=8", "--rdzv-backend=c10d", "--rdzv-endpoint=node-a:29500",
        "--rdzv-id=run-17", "--max-restarts=3", "--shutdown_timeout", "300", "pretrain.py", "-x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({"GPUS_PER_NODE": "3", "SLURM_GPUS_ON_NODE": "8"}, "3"),
        ({"SLURM_GPUS_ON_NODE": "h100:4"}, "4"),
        ({"SLURM_GPUS_PER_NODE": "gpu:h100:6"}, "6"),
        ({"CUDA_VISIBLE_DEVICES": "0,2,5"}, "3"),
    ],
)
def test_gpus_are_counted_by_whoever_knows(launch, environment, settings, gpus):
    process = launch("single_node.sh", environment | settings, "--dry-run", "--lr", "1")
    assert f"--nproc-per-node={gpus}" in words(process)


def test_gpus_are_counted_by_nvidia_smi(launch, environment, record):
    fake = record / "bin" / "nvidia-smi"
    fake.write_text("#!/usr/bin/env bash\nprintf 'GPU 0: H200 (UUID: a)\\nGPU 1: H200 (UUID: b)\\n'\n")
    fake.chmod(0o700)
    assert "--nproc-per-node=2" in words(launch("single_node.sh", environment, "--dry-run", "--lr", "1"))


@pytest.mark.parametrize("count", ["0", "two", "h100:"])
def test_a_count_that_is_no_number_is_refused(launch, environment, count):
    process = launch("single_node.sh", environment | {"SLURM_GPUS_ON_NODE": count}, "--dry-run", "--lr", "1")
    check_refused(process, "must be a positive integer", "GPUS_PER_NODE")


def test_an_unknown_number_of_gpus_is_refused(launch, environment, record):
    bare = record / "bare"
    bare.mkdir()
    for name in ("bash", "env", "dirname", "tr", "grep"):
        (bare / name).symlink_to(shutil.which(name) or "")
    process = launch("single_node.sh", environment | {"PATH": str(bare)}, "--dry-run", "--lr", "1")
    check_refused(process, "cannot determine the number of GPUs", "GPUS_PER_NODE")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"NNODES": ""}, "NNODES is not set"),
        ({"NNODES": "some"}, "NNODES=some must be an integer"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "80"}, "MASTER_PORT=80 must be an integer of at least 1024"),
        ({"NODE_RANK": "2"}, "between 0 and 1"),
        ({"MASTER_ADDR": "localhost"}, "means itself on every node"),
        ({"MASTER_ADDR": "127.0.0.1"}, "means itself on every node"),
        ({"RDZV_ENDPOINT": "node-a:29500"}, "unset one or the other"),
    ],
)
def test_static_rendezvous_refuses(launch, environment, change, said):
    check_refused(launch("multi_node.sh", environment | STATIC | change, "--dry-run", "--lr", "1"), said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RDZV_ID": ""}, "RDZV_ID is not set"),
        ({"RDZV_ENDPOINT": "node-a"}, "must have the form HOST:PORT"),
        ({"RDZV_ENDPOINT": "localhost:29500"}, "means itself on every node"),
    ],
)
def test_c10d_rendezvous_refuses(launch, environment, change, said):
    check_refused(launch("multi_node.sh", environment | C10D | change, "--dry-run", "--lr", "1"), said)


def test_a_port_that_another_program_uses_is_refused(launch, environment, record):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        first = environment | STATIC | {"NODE_RANK": "0", "MASTER_PORT": port}
        process = launch("multi_node.sh", first, "--lr", "1")
        check_refused(process, f"port {port} is already in use on this node", "MASTER_PORT")
        assert not (record / "ranks").exists()
        # The port is one of node 0: other nodes may use it for something else.
        assert launch("multi_node.sh", first | {"NODE_RANK": "1"}, "--lr", "1").returncode == 0
    assert launch("multi_node.sh", first, "--lr", "1").returncode == 0


def test_nothing_to_train_is_refused(launch, environment):
    check_refused(launch("single_node.sh", environment | {"GPUS_PER_NODE": "1"}), "no arguments for pretrain.py")
