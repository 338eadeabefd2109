"""One process per node before torchrun: the variables of multi_node.sh, and numbers for nodes that have none."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from megatron_fwpkm.preflight.node_launch import read_node_launch

STATIC = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}


def test_a_machine_alone() -> None:
    assert read_node_launch({}, 1) is None
    assert read_node_launch(STATIC | {"NNODES": "1"}, 1) is None


def test_a_numbered_node() -> None:
    launch = read_node_launch(STATIC, 1)
    assert launch is not None
    assert (launch.rank, launch.nodes, launch.meeting_place, launch.store_in_agent) == (1, 2, "a:29500", False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"NODE_RANK": "2"}, "NODE_RANK=2 must be less than NNODES=2"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "NNODES=2 but MASTER_ADDR and MASTER_PORT not set"),
        ({"NNODES": "two"}, "NNODES='two' is not an integer"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999 must be between 1 and 65535"),
        ({"RDZV_ENDPOINT": "a:99999"}, "RDZV_ENDPOINT=a:99999 must be HOST:PORT, with a port from 1 to 65535"),
        ({"RDZV_ENDPOINT": "a"}, "RDZV_ENDPOINT=a must be HOST:PORT"),
    ],
)
def test_wrong_variables(change: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_node_launch(STATIC | change, 1)


def test_nodes_without_numbers_are_numbered_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    endpoint = {"NNODES": "3", "RDZV_ENDPOINT": f"127.0.0.1:{server.port}"}
    first = read_node_launch(endpoint, 20)
    assert first is not None and first.rank == 0, "the endpoint is an address of this machine"
    monkeypatch.setattr("megatron_fwpkm.preflight.node_launch.is_here", lambda host, port: False)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(read_node_launch(endpoint, 20).rank)) for _ in range(2)]  # type: ignore[union-attr]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [1, 2]
    with pytest.raises(ValueError, match="NNODES=3, but node 3 has come"):
        read_node_launch(endpoint, 20)
