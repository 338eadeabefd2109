"""A pre-flight from its start to its report: meet, look, compare, time the groups. Every wait has an end."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..config.loading import Resolved
from ..distributed.launch_variables import Launch, read_launch
from ..distributed.liveness import is_communication_failure
from ..distributed.rendezvous import meet
from ..distributed.startup import World, distributed_run
from ..engines.megatron_groups import model_parallel_groups, parallel_groups
from . import comparison
from .clock import clock_offset
from .deadline import deadline
from .exchange import Exchange, Words
from .group_results import collect, group_troubles
from .group_timing import time_group
from .node_checks import NodeChecks
from .node_launch import OPTION, read_node_launch
from .preflight_options import PreflightOptions
from .preflight_report import PreflightReport, failure, render, success
from .shared_folder import leave_token, see_token
from .trouble import Trouble, name_nodes

_GRACE_SECONDS = 15.0
_ALONE = Launch(0, 1, 0, 1, "this process", 0, store_in_agent=False)


def run(resolved: Resolved, options: PreflightOptions) -> int:
    """Check what `resolved` would run on, from this process's place among the others; returns the exit status 0.

    Raises ValueError, after the report, for everything that would keep the run from starting.
    """
    launch = read_launch(os.environ)
    node = read_node_launch(os.environ, options.preflight_timeout) if launch is None else None
    place = launch or node or _ALONE
    return Preflight(resolved, options, place, alone=launch is None, before_torchrun=node is not None).run()


class Preflight:
    """One process's part in a pre-flight."""

    def __init__(
        self, resolved: Resolved, options: PreflightOptions, launch: Launch, *, alone: bool, before_torchrun: bool
    ) -> None:
        """`alone`: no launcher has started this process as a rank; `before_torchrun`: it stands for a whole node."""
        self._resolved, self._options, self._launch = resolved, options, launch
        self._alone, self._before_torchrun = alone, before_torchrun
        self._timeout = options.preflight_timeout
        self._node = launch.node_of(launch.rank)
        self._hosts = {self._node: socket.gethostname()}
        self._begin = time.monotonic()
        place = launch.meeting_place if launch.world_size > 1 else socket.gethostname()
        self._report = PreflightReport(place, launch.world_size)

    def run(self) -> int:
        """All phases; the report is printed and written by rank 0, whatever they find."""
        try:
            exchange = self._meet()
            try:
                self._look_at_nodes(exchange)
                if not self._before_torchrun:
                    self._time_groups(exchange)
            finally:
                with suppress(RuntimeError, ValueError):
                    exchange.leave()
        except (ValueError, RuntimeError) as error:
            self._stop(self._explained(error))
        if self._launch.rank == 0:
            self._finish()
            print(success(self._report), flush=True)
        return 0

    @property
    def _here(self) -> str:
        return name_nodes([self._node], self._hosts)

    def _meet(self) -> Exchange:
        """Find the others: every rank learns the names of all nodes."""
        launch = self._launch
        if launch.world_size == 1:
            return Exchange(dist.HashStore(), launch, self._hosts, self._timeout)
        lost = f"{self._here} cannot reach {launch.meeting_place}: check the network between the nodes"
        with self._bound(self._timeout + _GRACE_SECONDS, lambda: lost):
            try:
                store = meet(launch, self._timeout, option=OPTION)
            except ValueError as error:
                raise ValueError(f"{self._here}: {error}") from None
            for node in range(launch.nodes):
                self._hosts[node] = store.get(f"fwpkm/host/{node * launch.local_world_size}").decode()
        store = dist.PrefixStore("preflight", store)
        return Exchange(store, launch, self._hosts, self._timeout)

    def _look_at_nodes(self, exchange: Exchange) -> None:
        """Every node by itself, then all against each other; raises ValueError for what is fatal."""
        word: dict[str, Any] = {"node": self._node, "start": comparison.describe(self._resolved)}
        place = None
        if self._launch.local_rank == 0:
            checks = self._checks()
            slow = f"takes longer than {self._timeout:g} s: look at the disk, the mount or the driver that it waits for"
            with self._bound(self._timeout, lambda: f"{self._here}: {checks.doing} {slow}"):
                found = checks.run()
            place = found.save_place
            word |= asdict(found)
        with self._network_bound("the nodes' answers"):
            token = exchange.round("facts", word, self._compare)["token"]
            told: dict[str, Any] = {"node": self._node}
            if self._launch.local_rank == 0:
                told["clock_offset"] = clock_offset(exchange)
                told["sees_token"] = token is None or place is None or see_token(Path(place), token)
            answer = exchange.round("clocks and folders", told, self._conclude)
        if answer["failure"]:
            raise ValueError(answer["failure"])

    def _checks(self) -> NodeChecks:
        launch = self._launch
        if not self._before_torchrun:
            return NodeChecks(self._resolved.config, launch, launch.world_size, launch.local_world_size)
        given = os.environ.get("GPUS_PER_NODE", "")
        per_node = int(given) if given.isdigit() else None
        return NodeChecks(
            self._resolved.config, launch, None if per_node is None else per_node * launch.nodes, per_node or 1
        )

    def _compare(self, words: Words) -> dict[str, Any]:
        """On rank 0: what differs between the nodes; leaves a token in the folder for checkpoints."""
        size = self._launch.local_world_size
        for word in words[::size]:
            ranks = [rank for rank in range(len(words)) if self._launch.node_of(rank) == word["node"]]
            self._report.nodes.append(
                {
                    "node": word["node"], "host": self._hosts[word["node"]], "ranks": ranks,
                    "versions": comparison.versions(word["start"]), "gpus": word["gpus"], "driver": word["driver"],
                    "free": word["free"], "files": word["files"], "clock_offset": 0.0,
                }
            )  # fmt: skip
        self._report.troubles += comparison.compare(words, self._hosts)
        place = words[0]["save_place"]
        self._token = None if place is None else leave_token(Path(place))
        return {"token": None if self._token is None else self._token.name}

    def _conclude(self, words: Words) -> dict[str, Any]:
        """On rank 0: clocks and the shared folder; then the verdict on the nodes."""
        if self._token is not None:
            self._token.unlink(missing_ok=True)
        first = words[:: self._launch.local_world_size]
        offsets = {word["node"]: word["clock_offset"] for word in first}
        for row in self._report.nodes:
            row["clock_offset"] = offsets[row["node"]]
        self._report.troubles += comparison.compare_clocks(offsets, self._hosts)
        if blind := [word["node"] for word in first if not word["sees_token"]]:
            save = self._resolved.config.checkpoint.save
            self._report.troubles.append(
                Trouble(
                    f"--save {save} is not one folder: a file that {name_nodes([0], self._hosts)} wrote there is not "
                    f"to be seen from {name_nodes(blind, self._hosts)}",
                    "mount the same file system on every node; checkpoints are written and read by all of them",
                )
            )
        return self._verdict()

    def _verdict(self) -> dict[str, Any]:
        return {"failure": "" if self._report.passed else failure(self._report.troubles)}

    def _time_groups(self, exchange: Exchange) -> None:
        """Make the process groups as training does, and time each of them."""
        config, minutes = self._resolved.config, 2 * self._timeout / 60
        parallel = replace(config.parallel, distributed_timeout_minutes=minutes)
        met = None if self._alone else dist.PrefixStore("groups", exchange.store)
        told = {}
        with ExitStack() as stack:
            late = f"the process groups were not made within {self._timeout:g} s: {self._network_advice}"
            with self._bound(self._timeout, lambda: late):
                world = stack.enter_context(distributed_run(parallel, config.training, store=met))
                stack.enter_context(model_parallel_groups(parallel, config.training.seed, world))
                groups = parallel_groups()
            for kind, group in groups.items():
                if group.size() > 1:
                    world.mark(f"timing the {kind} group")
                    with self._bound(self._timeout, lambda world=world, kind=kind: self._who_is_late(world, kind)):  # type: ignore[misc]
                        told[kind] = time_group(group, world.device, self._options.preflight_bytes)
            with self._network_bound("the groups' times"):
                answer = exchange.round("times", {"groups": told}, self._judge_groups)
        if answer["failure"]:
            raise ValueError(answer["failure"])

    def _judge_groups(self, words: Words) -> dict[str, Any]:
        """On rank 0: bandwidths, and the verdict on everything."""
        self._report.groups = collect(words, self._options.preflight_bytes, self._launch)
        self._report.groups_tested = True
        self._report.troubles += group_troubles(self._report.groups, self._launch, self._hosts)
        return self._verdict()

    def _who_is_late(self, world: World, kind: str) -> str:
        """Which ranks keep a group waiting, by what all have left in the store."""
        why = world.roll_call.explain(RuntimeError("timed out")) if world.roll_call is not None else None
        late = f"{self._here}: the group {kind!r} did not finish within {self._timeout:g} s"
        return f"{late}: {why}; {self._network_advice}"

    @property
    def _network_advice(self) -> str:
        return (
            "check that the nodes reach each other at every port, and the interface that is used (NCCL_SOCKET_IFNAME, "
            "GLOO_SOCKET_IFNAME)"
        )

    def _network_bound(self, what: str) -> Any:
        late = f"{self._here} did not receive {what} from {self._launch.meeting_place}: {self._network_advice}"
        return self._bound(4 * self._timeout + _GRACE_SECONDS, lambda: late)

    def _bound(self, seconds: float, explain: Callable[[], str]) -> Any:
        return deadline(seconds, explain, self._finish_with)

    def _explained(self, error: ValueError | RuntimeError) -> str:
        if isinstance(error, ValueError):
            return str(error)
        if not is_communication_failure(error):
            raise error
        why = str(error).splitlines()[0]
        return (
            f"{self._here} lost the connection to {self._launch.meeting_place} ({why}): read the log of "
            f"{name_nodes([0], self._hosts)}, and check the network"
        )

    def _stop(self, message: str) -> None:
        """End with an error: said once per node, and by rank 0 with the report."""
        if self._launch.rank == 0:
            self._finish_with(message)
        if self._launch.local_rank != 0:
            raise SystemExit(1)
        raise ValueError(message)

    def _finish_with(self, message: str) -> None:
        if self._launch.rank == 0:
            if self._report.passed:  # it failed for a reason that is not among the troubles
                self._report.troubles.append(Trouble(message, "read the log"))
            self._finish()

    def _finish(self) -> None:
        """Print and write the report."""
        self._report.seconds = time.monotonic() - self._begin
        if self._report.nodes:
            print(render(self._report), flush=True)
        if self._options.preflight_json is not None:
            self._report.write(self._options.preflight_json)
