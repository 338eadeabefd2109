"""torchrun on one node and on several: the printed commands, and what is refused."""

from __future__ import annotations

import shlex
import shutil
import signal
import socket
import subprocess
import time

import pytest

from tests.launch.conftest import ROOT

TORCHRUN = ["python-fake", "-m", "torch.distributed.run"]
LOGS = ["--log-dir=runs/torchrun_logs/node-x", "--tee=3"]
STATIC = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-a", "MASTER_PORT": "29500", "GPUS_PER_NODE": "8"}
C10D = {"NNODES": "2", "RDZV_ENDPOINT": "node-a:29500", "RDZV_ID": "run-17", "GPUS_PER_NODE": "8"}


def printed(process) -> list[list[str]]:
    """The printed commands as words, without the variables; the script must have succeeded."""
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    return [shlex.split(line) for line in lines if not line.startswith(("#", "export "))]


def words(process) -> list[str]:
    """The command that trains."""
    return printed(process)[-1]


def check_refused(process, *said: str) -> None:
    """Status 1 and one line of error that says all of `said`."""
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    for text in said:
        assert text in process.stderr


def test_single_node(launch, environment):
    process = launch("single_node.sh", environment | {"GPUS_PER_NODE": "4"}, "--dry-run", "--save", "a b")
    begin = [*TORCHRUN, "--nnodes=1", "--nproc-per-node=4", *LOGS, "--standalone"]
    assert printed(process) == [
        [*begin, "tools/preflight.py", "--save", "a b"],
        [*begin, "--max-restarts=0", "pretrain.py", "--save", "a b"],
    ]


@pytest.mark.parametrize(("script", "settings"), [("single_node.sh", {"GPUS_PER_NODE": "1"}), ("multi_node.sh", C10D)])
def test_a_pasted_dry_run_is_the_run(launch, environment, script, settings):
    process = launch(script, environment | settings | {"NCCL_DEBUG": "IN FO"}, "--dry-run", "--engine", "deepspeed")
    exports = dict(shlex.split(line)[1].split("=", 1) for line in process.stdout.splitlines() if "export " in line)
    assert exports["NCCL_DEBUG"] == "IN FO" and exports["OMP_NUM_THREADS"] == environment.get("OMP_NUM_THREADS", "1")
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in exports) == (script == "multi_node.sh")
    assert words(process)[-3:] == ["pretrain.py", "--engine", "deepspeed"]


def test_what_may_be_left_out(launch, environment):
    settings = {"GPUS_PER_NODE": "1", "PREFLIGHT": "0", "LOG_DIR": "", "TORCHRUN_MAX_RESTARTS": "2"}
    process = launch("single_node.sh", environment | settings, "--dry-run", "-x")
    assert printed(process) == [
        [*TORCHRUN, "--nnodes=1", "--nproc-per-node=1", "--standalone", "--max-restarts=2", "pretrain.py", "-x"]
    ]


def test_single_node_runs_the_commands_it_prints(launch, environment, record):
    process = launch("single_node.sh", environment | {"GPUS_PER_NODE": "4"}, "--config", "x.yaml", "--dry-run")
    assert process.returncode == 0, process.stderr
    told = (record / "ranks").read_text().splitlines()
    assert told[0].endswith("--standalone tools/preflight.py --config x.yaml --dry-run")
    assert told[1].endswith("--standalone --max-restarts=0 pretrain.py --config x.yaml --dry-run")


@pytest.mark.parametrize("script", ["single_node.sh", "multi_node.sh"])
def test_nothing_is_trained_where_the_preflight_fails(launch, environment, record, script):
    process = launch(script, environment | C10D | {"FAKE_STATUS": "3"}, "--lr", "1")
    check_refused(process, "the pre-flight failed with status 3", "PREFLIGHT=0")
    assert len((record / "ranks").read_text().splitlines()) == 1


@pytest.mark.parametrize(("sent", "said"), [("TERM", "stopped during the pre-flight"), ("INT", "stopped during")])
def test_a_preflight_can_be_stopped(environment, record, sent, said):
    command = ["bash", str(ROOT / "examples/launch/single_node.sh"), "--lr", "1"]
    settings = environment | {"GPUS_PER_NODE": "1", "FAKE_TRAINS": "1"}
    process = subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True)
    while not (record / "ranks").exists():
        time.sleep(0.05)
    time.sleep(0.2)  # it sets its trap
    process.send_signal(getattr(signal, f"SIG{sent}"))
    assert said in process.communicate(timeout=20)[1] and process.returncode == 1
    assert (record / "saved").exists()  # the command itself was told


def test_static_rendezvous(launch, environment):
    process = launch("multi_node.sh", environment | STATIC, "--dry-run", "--lr", "1e-3")
    begin = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=8", *LOGS, "--node-rank=1", "--master-addr=node-a"]
    nodes = ["env", "NNODES=2", "GPUS_PER_NODE=8", "NODE_RANK=1", "MASTER_ADDR=node-a", "MASTER_PORT=29501"]
    assert printed(process) == [
        [*nodes, "python-fake", "tools/preflight.py", "--preflight-timeout=60", "--lr", "1e-3"],
        [*begin, "--master-port=29501", "tools/preflight.py", "--lr", "1e-3"],
        [*begin, "--master-port=29500", "pretrain.py", "--lr", "1e-3"],
    ]
    assert process.stdout.startswith("# on node 1 of 2, in ")


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_dry_run_without_a_rank_prints_every_node(launch, environment, nodes):
    settings = environment | STATIC | {"NNODES": str(nodes), "NODE_RANK": ""}
    process = launch("multi_node.sh", settings, "--dry-run", "--lr", "1e-3")
    torchruns = [command for command in printed(process) if command[0] != "env"]
    assert len(printed(process)) == len(torchruns) + nodes * (nodes > 1)
    ranks = [next(word for word in command if word.startswith("--node-rank")) for command in torchruns]
    assert ranks == [f"--node-rank={rank}" for rank in range(nodes) for _ in ("pre-flight", "training")]
    check_refused(launch("multi_node.sh", settings, "--lr", "1e-3"), "NODE_RANK is not set")


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_c10d_rendezvous(launch, environment, nodes):
    more = {"TORCHRUN_ARGS": "--shutdown-timeout 300", "NNODES": nodes, "PREFLIGHT_TIMEOUT": "300"}
    process = launch("multi_node.sh", environment | C10D | more, "--dry-run", "-x")
    before = ["env", "NNODES=2", "GPUS_PER_NODE=8", "RDZV_ENDPOINT=node-a:29501", "python-fake", "tools/preflight.py"]
    begin = [*TORCHRUN, f"--nnodes={nodes}", "--nproc-per-node=8", *LOGS, "--rdzv-backend=c10d"]
    assert printed(process) == [
        *([[*before, "--preflight-timeout=300", "-x"]] if nodes == "2" else []),
        [*begin, "--rdzv-endpoint=node-a:29501", "--rdzv-id=run-17-preflight", "tools/preflight.py", "-x"],
        [
            *begin, "--rdzv-endpoint=node-a:29500", "--rdzv-id=run-17", "--max-restarts=3", "--shutdown-timeout", "300",
            "pretrain.py", "-x",
        ],
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
        ({"TORCHRUN_MAX_RESTARTS": "1"}, "TORCHRUN_MAX_RESTARTS=1 needs the c10d rendezvous"),
        ({"PREFLIGHT": "no"}, "PREFLIGHT=no must be 0 or 1"),
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
        ({"TORCHRUN_MAX_RESTARTS": "-1"}, "TORCHRUN_MAX_RESTARTS=-1 must be an integer of at least 0"),
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
