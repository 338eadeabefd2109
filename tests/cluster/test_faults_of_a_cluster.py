"""A cluster's first day on network namespaces: what works, what fails, in which time, and whom the message names."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.checkpoint.manager import published
from megatron_fwpkm.training.metrics import read_records
from tests.cluster.namespaces import Node, Program, wait_for, wait_until
from tests.cluster.table import note
from tests.test_pretrain import flags, write_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LIMIT = 300
WAIT = 15
"""Seconds that nodes wait for each other here; a minute by default."""
SLACK = 60
"""Seconds in which a program starts and ends on a busy machine."""
PORT = "29500"
Start = Callable[[int], list[Node]]
WAITING = {
    "preflight": ["tools/preflight.py", "--preflight-timeout", str(WAIT), "--preflight-bytes", "65536"],
    "pretrain": ["pretrain.py", "--rendezvous-timeout-minutes", str(WAIT / 60)],
}
"""Two programs, with the flag that bounds their wait."""


def small(folder: Path, **changes: Any) -> list[str]:
    """A run that all nodes share."""
    dataset = folder / "numbers"
    if not Path(f"{dataset}.bin").exists():
        write_dataset(dataset)
    chosen = {"save": folder / "run", "eval_iters": 0, "split": "1,0,0", "train_iters": 4, "log_interval": 1, **changes}
    return flags(str(dataset), **chosen)


def variables(program: str, node: Node, count: int, address: str = "10.77.0.1") -> dict[str, str]:
    """What a launcher gives the one process of a node: a node's variables before torchrun, or those of a rank."""
    place = {"MASTER_ADDR": address, "MASTER_PORT": PORT}
    if program == "preflight":
        return place | {"NNODES": str(count), "NODE_RANK": str(node.number), "GPUS_PER_NODE": "1"}
    rank = {"RANK": str(node.number), "WORLD_SIZE": str(count), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return place | rank


def torchrun(node: Node, count: int, *more: str) -> list[str]:
    """torchrun on a node with a number, one process."""
    place = [f"--node-rank={node.number}", "--master-addr=node-a", f"--master-port={PORT}"]
    return [sys.executable, "-m", "torch.distributed.run", f"--nnodes={count}", "--nproc-per-node=1", *place, *more]


def elastic(*more: str) -> list[str]:
    """torchrun that numbers its nodes and takes back one that was lost, as examples/launch/multi_node.sh starts it."""
    place = ["--rdzv-backend=c10d", f"--rdzv-endpoint=node-a:{PORT}", "--rdzv-id=run", "--max-restarts=3"]
    return [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *place, *more]


ELASTIC = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def errors(program: Program) -> list[str]:
    """The lines in which it says what is wrong."""
    return re.findall(r"^error: (.*(?:\n  - .*)*)", program.text, re.MULTILINE)


def took(programs: list[Program]) -> float:
    """Seconds until the last of them ended."""
    return max((program.ended or program.began) - program.began for program in programs)


def check_ended(programs: list[Program], nodes: list[Node], within: float) -> list[int]:
    """All have ended in time with one message each, and nothing runs on any node; gives the exit statuses."""
    statuses = wait_for(programs, within)
    assert [len(errors(program)) for program in programs] == [1] * len(programs), [p.text for p in programs]
    assert not any("Traceback" in program.text for program in programs)
    assert [node.processes() for node in nodes] == [[]] * len(nodes)
    return statuses


def test_four_nodes_before_torchrun_and_under_it(start_nodes: Start, tmp_path: Path) -> None:
    nodes = start_nodes(4)
    words = [*WAITING["preflight"], *small(tmp_path, tensor_model_parallel_size=2)]
    for stage in ("python", "torchrun"):
        if stage == "python":
            programs = [node.start([sys.executable, *words], variables("preflight", node, 4)) for node in nodes]
        else:
            programs = [node.start(torchrun(node, 4, *words)) for node in nodes]
        assert wait_for(programs, LIMIT) == [0] * 4
        report = programs[0].text
        assert re.findall(r"^(\d) +(node-\w) +(\d)", report, re.MULTILINE) == [
            (str(number), f"node-{name}", str(number)) for number, name in enumerate("abcd")
        ]
        note(f"start, {stage}", 4, "preflight", took(programs), [0] * 4, report, r"pre-flight passed.*")
    for kind, number in {"all ranks": 1, "tensor-parallel": 2, "data-parallel": 2}.items():
        assert re.search(rf"^{kind} +{number} ", report, re.MULTILINE)
    assert "pre-flight passed" in report and "4 nodes, 4 processes, 5 groups" in report


def script(node: Node, count: int) -> dict[str, str]:
    """What a user gives examples/launch/multi_node.sh."""
    place = {"NNODES": str(count), "NODE_RANK": str(node.number), "MASTER_ADDR": "node-a", "MASTER_PORT": PORT}
    return place | {"GPUS_PER_NODE": "1", "PYTHON": sys.executable, "LOG_DIR": "", "PREFLIGHT_TIMEOUT": str(WAIT)}


@pytest.mark.parametrize("engine", ["megatron", "deepspeed"])
def test_the_launch_script_checks_and_trains(start_nodes: Start, tmp_path: Path, engine: str) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    nodes = start_nodes(2)
    words = ["bash", "examples/launch/multi_node.sh", *small(tmp_path, engine=engine)]
    programs = [node.start(words, script(node, 2)) for node in nodes]
    assert wait_for(programs, LIMIT) == [0, 0], [program.text for program in programs]
    assert programs[0].text.count("pre-flight passed") == 2
    assert published(tmp_path / "run")[-1].name == "iter_0000004"
    note("start", 2, f"multi_node.sh, {engine}", took(programs), [0, 0], programs[0].text, r"finished: .*")


def test_the_launch_script_does_not_wait_long_for_a_missing_peer(start_nodes: Start, tmp_path: Path) -> None:
    nodes = start_nodes(2)
    words = ["bash", "examples/launch/multi_node.sh", *small(tmp_path)]
    program = nodes[1].start(words, script(nodes[1], 2))
    assert wait_for([program], WAIT + SLACK) == [1] and nodes[1].processes() == []
    said, nothing = errors(program)
    assert said.startswith("node 1 (node-b): gave up after") and "rank 0 cannot be reached at node-a:29500" not in said
    assert "rank 0 cannot be reached at node-a:29501 (Connection refused)" in said
    assert "nothing was started" in nothing and not (tmp_path / "run").exists()
    note("missing peer", 2, "multi_node.sh", took([program]), [1], program.text)


@pytest.mark.parametrize("program", WAITING)
def test_a_wrong_address(start_nodes: Start, tmp_path: Path, program: str) -> None:
    nodes = start_nodes(2)
    words = [sys.executable, *WAITING[program], *small(tmp_path)]
    first = nodes[0].start(words, variables(program, nodes[0], 2))
    second = nodes[1].start(words, variables(program, nodes[1], 2, "10.77.0.99"))
    assert check_ended([first, second], nodes, WAIT + SLACK) == [1, 1]
    (lost,), (waiting,) = errors(second), errors(first)
    assert re.search(r"gave up after 1\d s: rank 0 cannot be reached at 10\.77\.0\.99:29500 \(No route to host\)", lost)
    assert "missing: rank 1, on node 1, whose log may say why; there: node 0 (node-a)" in waiting
    if program == "preflight":
        assert lost.startswith("node 1 (node-b): ") and waiting.startswith("node 0 (node-a): ")
    assert not (tmp_path / "run").exists()
    note("wrong address", 2, program, took([first, second]), [1, 1], second.text)


def test_a_name_that_nobody_knows(start_nodes: Start, tmp_path: Path) -> None:
    nodes = start_nodes(2)
    words = [sys.executable, *WAITING["preflight"], *small(tmp_path)]
    program = nodes[1].start(words, variables("preflight", nodes[1], 2, "node-z"))
    assert check_ended([program], nodes, WAIT + SLACK) == [1]
    assert "node 1 (node-b): gave up after" in errors(program)[0]
    assert "the name MASTER_ADDR=node-z does not resolve" in errors(program)[0]
    note("wrong name", 2, "preflight", took([program]), [1], program.text)


@pytest.mark.parametrize("program", WAITING)
def test_a_missing_peer(start_nodes: Start, tmp_path: Path, program: str) -> None:
    nodes = start_nodes(3)
    words = [sys.executable, *WAITING[program], *small(tmp_path, global_batch_size=6)]
    programs = [node.start(words, variables(program, node, 3)) for node in nodes[:2]]
    assert check_ended(programs, nodes, WAIT + SLACK) == [1, 1]
    said = "2 of 3 ranks have joined at 10.77.0.1:29500; missing: rank 2, on node 2"
    assert said in errors(programs[0])[0] and "there: nodes 0 (node-a), 1 (node-b)" in errors(programs[0])[0]
    note("missing peer", 3, program, took(programs), [1, 1], programs[0].text)


@pytest.mark.parametrize("program", WAITING)
def test_another_configuration_on_one_node(start_nodes: Start, tmp_path: Path, program: str) -> None:
    nodes = start_nodes(2)
    words = [sys.executable, *WAITING[program], *small(tmp_path)]
    programs = [
        node.start(words + ["--lr", "7"] * node.number, variables(program, node, 2)) for node in nodes
    ]  # fmt: skip
    statuses = wait_for(programs, LIMIT)
    assert statuses == [1, 1] and not (tmp_path / "run").exists()
    whole = "".join(one.text for one in programs)
    found = r"--lr is 0\.01 on (node 0|rank 0) \(node-a\) and 7\.0 on (node 1|rank 1) \(node-b\)"
    assert re.search(found, whole) and "Traceback" not in whole
    note("other configuration", 2, program, took(programs), statuses, whole)


def test_data_that_one_node_lacks_and_a_folder_of_its_own(start_nodes: Start, tmp_path: Path) -> None:
    nodes = start_nodes(2)
    (tmp_path / "run").mkdir()
    (tmp_path / "empty").mkdir()
    words = [sys.executable, *WAITING["preflight"], *small(tmp_path)]
    data = tmp_path / "numbers.idx"
    hide = f"mount -t tmpfs none {tmp_path / 'run'}; mount --bind {tmp_path / 'empty'} {tmp_path / 'run'}; "
    first = nodes[0].start(words, variables("preflight", nodes[0], 2))
    second = nodes[1].start(words, variables("preflight", nodes[1], 2), shell=f"{hide}mount --bind /dev/null {data};")
    assert check_ended([first, second], nodes, LIMIT) == [1, 1]
    (said,) = errors(first)
    assert f"node 1 (node-b): the dataset {tmp_path}/numbers cannot be read" in said
    assert f"--save {tmp_path}/run is not one folder" in said and "not to be seen from node 1 (node-b)" in said
    note("data missing, --save not shared", 2, "preflight", took([first, second]), [1, 1], first.text, r"error: .*\n.*")


def test_a_link_that_is_cut_while_groups_are_timed(start_nodes: Start, tmp_path: Path) -> None:
    nodes = start_nodes(2)
    words = ["tools/preflight.py", *small(tmp_path), "--preflight-timeout", str(WAIT)]
    words += ["--preflight-bytes", str(2**29)]
    programs = [node.start(torchrun(node, 2, *words)) for node in nodes]
    wait_until(lambda: nodes[0].received() > 2**24, "the first sum", LIMIT)
    nodes[1].cut()
    cut = time.monotonic()
    statuses = wait_for(programs, WAIT + 2 * SLACK)
    assert statuses == [1, 1] and [node.processes() for node in nodes] == [[], []]
    assert any("did not finish" in line or "cannot continue" in line for line in errors(programs[0])), programs[0].text
    assert "node-b" in errors(programs[0])[0]
    note("cut link", 2, "preflight", time.monotonic() - cut, statuses, programs[0].text)


@pytest.mark.parametrize("launcher", ["static", "c10d"])
def test_a_link_that_is_cut_while_training(start_nodes: Start, tmp_path: Path, launcher: str) -> None:
    nodes = start_nodes(2)
    # Without a network the agent of the elastic torchrun waits until TCP gives up, a quarter of an hour by default.
    impatient = "sysctl -q -w net.ipv4.tcp_retries2=6;" if launcher == "c10d" else ""
    endless = small(tmp_path, train_iters=10**6, save_interval=20, tensor_model_parallel_size=2)
    words = ["pretrain.py", *endless, "--distributed-timeout-minutes", str(WAIT / 60)]
    programs = [
        node.start(torchrun(node, 2, *words) if launcher == "static" else elastic("--max-restarts=0", *words), ELASTIC,
                   impatient)
        for node in nodes
    ]  # fmt: skip
    wait_until(lambda: bool((tmp_path / "run").exists() and published(tmp_path / "run")), "a checkpoint", LIMIT)
    nodes[1].cut()
    cut = time.monotonic()
    statuses = wait_for(programs, WAIT + 3 * SLACK)
    assert all(statuses) and [node.processes() for node in nodes] == [[], []]
    here, there = programs[0].text, programs[1].text
    assert re.search(r"error: rank 0 of 2 cannot continue: rank 1 \(process \d+ on node-b\) is silent", here), here
    if launcher == "static":
        assert "error: rank 1 of 2 cannot continue: the run's store does not answer: this host (node-b)" in there
    assert published(tmp_path / "run")
    for name, text in (("node 0", here), ("node 1", there)):
        pattern = r"error: .*|ranks? \d.* ends? here.*|.*RendezvousConnectionError: .*"
        note(f"cut link, {launcher}", 2, f"pretrain, {name}", time.monotonic() - cut, statuses, text, pattern)


def test_a_killed_node_joins_again_and_the_run_is_as_if_undisturbed(start_nodes: Start, tmp_path: Path) -> None:
    nodes = start_nodes(2)
    runs = {name: tmp_path / name for name in ("undisturbed", "killed")}
    words = {
        name: ["pretrain.py", *small(tmp_path, save=save, resume=True, train_iters=120, save_interval=10)]
        for name, save in runs.items()
    }
    programs = [node.start(elastic(*words["undisturbed"]), ELASTIC) for node in nodes]
    assert wait_for(programs, LIMIT) == [0, 0], [program.text for program in programs]
    programs = [node.start(elastic(*words["killed"]), ELASTIC) for node in nodes]
    wait_until(lambda: runs["killed"].exists() and len(published(runs["killed"])) > 1, "two checkpoints", LIMIT)
    nodes[1].kill()
    killed = time.monotonic()
    wait_until(lambda: "cannot continue" in programs[0].text, "a word about the loss", LIMIT)
    noticed = time.monotonic() - killed
    programs[1] = nodes[1].start(elastic(*words["killed"]), ELASTIC)
    assert wait_for(programs, LIMIT) == [0, 0], [program.text for program in programs]
    assert [node.processes() for node in nodes] == [[], []]
    everything = "".join(program.text for program in programs)
    assert re.search(r"rank \d \(process \d+ on node-b\) is silent", programs[0].text), programs[0].text
    resumed = re.search(rf"resumed from {runs['killed']}/iter_(\d+)", everything)
    assert resumed is not None and 0 < int(resumed[1]) < 120
    one, other = (
        {r["iteration"]: (r["loss"], r["grad_norm"], r["lr"]) for r in read_records(save / "metrics.jsonl")
         if r["kind"] == "train"}
        for save in runs.values()
    )  # fmt: skip
    assert sorted(one) == list(range(1, 121)) and one == other
    note("killed node, noticed", 2, "pretrain", noticed, [-9], programs[0].text, r"error: .*")
    note("killed node, joined again", 2, "pretrain", time.monotonic() - killed, [0, 0], everything, r"resumed from .*")
