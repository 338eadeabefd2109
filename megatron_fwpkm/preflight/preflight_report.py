"""The report of a pre-flight: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ..config.counted_things import count_things
from ..distributed.rendezvous import name_numbers
from .group_results import GroupResult
from .trouble import Trouble


@dataclass
class PreflightReport:
    """All that rank 0 knows in the end."""

    meeting_place: str
    ranks: int
    nodes: list[dict[str, Any]] = field(default_factory=list)
    """A row per node: number, host, ranks, versions, GPUs, driver, free bytes, clock offset."""
    groups: list[GroupResult] = field(default_factory=list)
    groups_tested: bool = False
    troubles: list[Trouble] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the run can start."""
        return not any(trouble.fatal for trouble in self.troubles)

    def write(self, path: str) -> None:
        """Write the report as JSON."""
        groups = [
            {**asdict(one), "pairs": [{"sender": s, "receiver": r, "gigabytes_per_second": speed}
                                      for (s, r), speed in one.pairs.items()]}
            for one in self.groups
        ]  # fmt: skip
        text = json.dumps({**asdict(self), "groups": groups, "passed": self.passed}, indent=2)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text + "\n", encoding="utf-8")


def render(report: PreflightReport) -> str:
    """Tables of nodes and groups and a line for every warning; what keeps the run from starting is said as an error."""
    lines = _table(["node", "host", "ranks", "versions", "GPUs", "free GiB", "clock"], map(_node_row, report.nodes))
    if report.groups:
        head = ["group", "number", "ranks each", "GB/s median", "slowest", "slowest pair", "GB/s"]
        lines += ["", *_table(head, _group_rows(report.groups))]
    lines += [f"warning: {trouble}" for trouble in report.troubles if not trouble.fatal]
    return "\n".join(lines)


def success(report: PreflightReport) -> str:
    """The one line of a pre-flight that found nothing wrong."""
    counted = [count_things(len(report.nodes), "node"), count_things(report.ranks, "process", "processes")]
    if report.groups_tested:
        counted.append(count_things(len(report.groups), "group"))
    warned = sum(not trouble.fatal for trouble in report.troubles)
    return (
        f"pre-flight passed in {report.seconds:.1f} s: {', '.join(counted)}"
        + ("" if report.groups_tested else "; groups are tested under torchrun")
        + (f"; {count_things(warned, 'warning')}" if warned else "")
    )


def failure(troubles: Iterable[Trouble]) -> str:
    """The message about everything that keeps the run from starting."""
    found = [str(trouble) for trouble in troubles if trouble.fatal]
    if len(found) == 1:
        return f"pre-flight failed: {found[0]}"
    return f"pre-flight failed, {len(found)} problems:" + "".join(f"\n  - {line}" for line in found)


def _node_row(node: Mapping[str, Any]) -> list[str]:
    gpus = node["gpus"]
    kinds = " / ".join(f"{gpus.count(kind)} x {kind}" for kind in dict.fromkeys(gpus)) or "none"
    versions = ", ".join(f"{name} {version}" for name, version in node["versions"].items() if name in _SHOWN)
    return [
        str(node["node"]), node["host"], name_numbers("rank", node["ranks"]).split(" ", 1)[1], versions, kinds,
        ", ".join(f"{place} {free / 2**30:.0f}" for place, free in node["free"].items()),
        f"{node['clock_offset']:+.3f} s",
    ]  # fmt: skip


_SHOWN = ("Python", "torch", "megatron-core", "deepspeed")


def _group_rows(groups: list[GroupResult]) -> Iterable[list[str]]:
    for kind in dict.fromkeys(one.kind for one in groups):
        of_kind = [one for one in groups if one.kind == kind]
        speeds = [one.gigabytes_per_second for one in of_kind]
        slowest = min(of_kind, key=lambda one: one.pairs[one.slowest_pair])
        sender, receiver = slowest.slowest_pair
        yield [
            kind, str(len(of_kind)), str(len(of_kind[0].ranks)), f"{median(speeds):.3g}", f"{min(speeds):.3g}",
            f"{sender} to {receiver}", f"{slowest.pairs[sender, receiver]:.3g}",
        ]  # fmt: skip


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
