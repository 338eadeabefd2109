"""A pre-flight with one process per node, started before torchrun, whose own wait for nodes names none of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..distributed.launch_variables import LAST_PORT, Launch, read_master_port, read_number
from ..distributed.rendezvous import is_here, number_by_arrival

OPTION = "--preflight-timeout"


def read_node_launch(environment: Mapping[str, str], limit: float) -> Launch | None:
    """This node among NNODES, as a process of its own; None for a machine that stands alone.

    The variables are those of examples/launch/multi_node.sh: NODE_RANK, MASTER_ADDR and MASTER_PORT, or RDZV_ENDPOINT,
    with which the node at that address is the first and the others are numbered as they come.

    Raises ValueError for variables that are missing or wrong, and when nobody listens at RDZV_ENDPOINT for `limit`
    seconds.
    """
    nodes = read_number(environment, "NNODES", 1) or 1
    if nodes == 1:
        return None
    if endpoint := environment.get("RDZV_ENDPOINT"):
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdigit() or not 1 <= int(port) <= LAST_PORT:
            raise ValueError(f"RDZV_ENDPOINT={endpoint} must be HOST:PORT, with a port from 1 to {LAST_PORT}")
        launch = Launch(0 if is_here(host, int(port)) else 1, nodes, 0, 1, host, int(port), store_in_agent=False)
        if launch.rank == 0:
            return launch
        node = number_by_arrival(launch, limit, OPTION)
        if node >= nodes:
            raise ValueError(f"NNODES={nodes}, but node {node} has come to {endpoint}: start as many as it says")
        return dataclasses.replace(launch, rank=node)
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise ValueError(
            f"NNODES={nodes} but {' and '.join(missing)} not set: this node does not know where the others are; "
            "examples/launch/multi_node.sh sets them"
        )
    rank, port_number = read_number(environment, "NODE_RANK", 0), read_master_port(environment)
    assert rank is not None
    if rank >= nodes:
        raise ValueError(f"NODE_RANK={rank} must be less than NNODES={nodes}: nodes are counted from 0")
    return Launch(rank, nodes, 0, 1, environment["MASTER_ADDR"], port_number, store_in_agent=False)
