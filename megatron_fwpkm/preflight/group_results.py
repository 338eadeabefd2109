"""From the ranks' times to a table: bandwidth of every group, its slowest pair, and what is far below its like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..distributed.launch_variables import Launch
from ..distributed.rendezvous import name_ranks
from .trouble import Trouble, name_nodes

_SLOW = 0.5
"""Share of the median below which a group or a pair is worth a look."""


@dataclass(frozen=True)
class GroupResult:
    """One group of ranks."""

    kind: str
    ranks: tuple[int, ...]
    nodes: tuple[int, ...]
    gigabytes_per_second: float
    """Bus bandwidth of an all-reduce: what every rank sends and receives, over the time of its slowest rank."""
    pairs: dict[tuple[int, int], float]
    """(sender, receiver) -> gigabytes per second, of neighbours in the group's circle."""
    wrong: tuple[int, ...]
    """Ranks that received wrong numbers."""

    @property
    def slowest_pair(self) -> tuple[int, int]:
        """Sender and receiver of the slowest pair."""
        return min(self.pairs, key=lambda pair: self.pairs[pair])


def collect(words: list[dict[str, Any]], size: int, launch: Launch) -> list[GroupResult]:
    """The groups of all ranks, by what `time_group` gave each of them under the name of the kind of group."""
    members: dict[tuple[str, tuple[int, ...]], dict[int, dict[str, Any]]] = {}
    for rank, word in enumerate(words):
        for kind, told in word["groups"].items():
            members.setdefault((kind, tuple(told["ranks"])), {})[rank] = told
    found = []
    for (kind, ranks), told in members.items():
        slowest = max(one["sum_seconds"] for one in told.values())
        moved = 2 * (len(ranks) - 1) / len(ranks) * size
        found.append(
            GroupResult(
                kind=kind,
                ranks=ranks,
                nodes=tuple(sorted({launch.node_of(rank) for rank in ranks})),
                gigabytes_per_second=moved / slowest / 1e9,
                pairs={
                    (ranks[index - 1], rank): size / told[rank]["receive_seconds"] / 1e9
                    for index, rank in enumerate(ranks)
                },
                wrong=tuple(rank for rank in ranks if told[rank]["wrong"]),
            )
        )
    return found


def group_troubles(results: list[GroupResult], launch: Launch, hosts: Mapping[int, str]) -> Iterator[Trouble]:
    """Wrong sums, and groups and pairs below half of the median of those that span as many nodes."""

    def place(ranks: tuple[int, ...]) -> str:
        """Ranks and the nodes they are on."""
        return f"{name_ranks(sorted(ranks))} on {name_nodes((launch.node_of(rank) for rank in ranks), hosts)}"

    for one in results:
        if one.wrong:
            yield Trouble(
                f"the {one.kind} group of {place(one.ranks)} computes wrong sums: {place(one.wrong)} received numbers "
                "that nobody sent",
                "take these nodes out, and test their memory and adapters",
            )
    groups: dict[tuple[str, int], dict[str, float]] = {}
    pairs: dict[tuple[str, bool], dict[str, float]] = {}
    for one in results:
        what = f"the {one.kind} group of {place(one.ranks)}"
        groups.setdefault((one.kind, len(one.nodes)), {})[what] = one.gigabytes_per_second
        for pair, speed in one.pairs.items():
            across = launch.node_of(pair[0]) != launch.node_of(pair[1])
            what = f"rank {pair[0]} to rank {pair[1]} ({one.kind}, {name_nodes(map(launch.node_of, pair), hosts)})"
            pairs.setdefault((one.kind, across), {})[what] = speed
    for speeds in groups.values():
        yield from _slow(speeds, "groups")
    for speeds in pairs.values():
        yield from _slow(speeds, "pairs")


def _slow(speeds: Mapping[str, float], likes: str) -> Iterator[Trouble]:
    """Whatever is below half of the median of its like."""
    usual = median(speeds.values())
    for what, speed in speeds.items():
        if speed < _SLOW * usual:
            yield Trouble(
                f"{what} moves {speed:.3g} GB/s, the median of such {likes} is {usual:.3g}",
                "look at cables, adapters and other programs there",
                fatal=False,
            )
