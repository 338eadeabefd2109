"""What differs between nodes is named with both values and both nodes; what a node says of itself with its name."""

from __future__ import annotations

from typing import Any

from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.preflight.comparison import compare, compare_clocks, describe, versions
from megatron_fwpkm.preflight.trouble import Trouble, name_nodes

HOSTS = {0: "a", 1: "b", 2: "c"}


def words(**of_the_last: Any) -> list[dict[str, Any]]:
    """What the first ranks of three nodes say; the last says something else."""
    same = {
        "start": {"--lr": "0.1", "the version of torch": "2.13.0", "the git commit": "1234"},
        "files": {"books.idx": "10 bytes (aa)"}, "gpus": ["H100 80 GiB"], "driver": "550", "save_place": "runs",
        "troubles": [],
    }  # fmt: skip
    return [{**same, "node": node, **(of_the_last if node == 2 else {})} for node in range(3)]


def found(**of_the_last: Any) -> list[Trouble]:
    return compare(words(**of_the_last), HOSTS)


def test_nodes_that_are_alike() -> None:
    assert found() == []


def test_an_option_and_a_version() -> None:
    start = {"--lr": "0.2", "the version of torch": "2.12.0", "the git commit": "1234"}
    start["the variable NCCL_ALGO"] = "Tree"
    one, other, variable = found(start=start)
    assert one.what == "--lr is 0.1 on nodes 0 (a), 1 (b) and 0.2 on node 2 (c)" and one.fatal
    assert other.what == "the version of torch is 2.13.0 on nodes 0 (a), 1 (b) and 2.12.0 on node 2 (c)" and other.fatal
    assert variable.what == "the variable NCCL_ALGO is not set on nodes 0 (a), 1 (b) and Tree on node 2 (c)"
    assert "the same command line" in one.advice


def test_another_commit_with_the_same_code_is_a_warning() -> None:
    (one,) = found(start={"--lr": "0.1", "the version of torch": "2.13.0", "the git commit": "none"})
    assert not one.fatal and one.what.startswith("the git commit is 1234")


def test_files_and_folders() -> None:
    (one,) = found(files={"books.idx": "11 bytes (bb)"})
    assert one.what == "books.idx is 10 bytes (aa) on nodes 0 (a), 1 (b) and 11 bytes (bb) on node 2 (c)" and one.fatal
    (other,) = found(save_place="/")
    assert "the folder for --save is runs on nodes 0 (a), 1 (b) and / on node 2 (c)" in other.what and other.fatal
    assert found(files={}) == [], "a file that is missing is a trouble of its own node"


def test_hardware_is_a_warning() -> None:
    driver, gpus = found(driver="535", gpus=["A100 80 GiB"])
    assert "the NVIDIA driver is 550 on nodes 0 (a), 1 (b) and 535 on node 2 (c)" == driver.what
    assert "H100" in gpus.what and "A100" in gpus.what
    assert not driver.fatal and not gpus.fatal


def test_what_a_node_found_by_itself_is_named_after_it() -> None:
    (one,) = found(troubles=[{"what": "the disk is full", "advice": "make room", "fatal": True}])
    assert str(one) == "node 2 (c): the disk is full: make room"


def test_clocks() -> None:
    ahead, behind = compare_clocks({0: 0.0, 1: 2.5, 2: -1.25}, HOSTS)
    assert ahead.what == "the clock of node 1 (b) is 2.5 s ahead of that of node 0 (a) (tolerance 1 s)" and ahead.fatal
    assert behind.what.startswith("the clock of node 2 (c) is 1.2 s behind")
    assert list(compare_clocks({0: 0.0, 1: 0.9}, HOSTS)) == []


def test_many_nodes_are_numbers() -> None:
    assert name_nodes([7, 1, 2, 3, 4, 5, 5], {}) == "nodes 1-5, 7"


def test_variables_of_communication_are_compared_but_those_of_one_node() -> None:
    resolved = parse_pretrain(["--lr", "0.1"])
    environment = {"NCCL_ALGO": "Ring", "NCCL_SOCKET_IFNAME": "ib0", "CUDA_DEVICE_MAX_CONNECTIONS": "1", "HOME": "x"}
    described = describe(resolved, environment)
    assert described["the variable NCCL_ALGO"] == "Ring"
    assert described["the variable CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert not {"the variable NCCL_SOCKET_IFNAME", "the variable HOME"} & described.keys()
    assert described["--lr"] == "0.1" and described["the code of megatron_fwpkm"]
    assert versions(described).keys() >= {"Python", "torch", "megatron-core"}
