"""What a pre-flight finds, and how it names nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..distributed.rendezvous import name_numbers

_NAMED_HOSTS = 4


@dataclass(frozen=True)
class Trouble:
    """Something that keeps a run from starting or, where it is not `fatal`, disturbs it."""

    what: str
    """What is wrong, with its place and value."""
    advice: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}"


def name_nodes(nodes: Iterable[int], hosts: Mapping[int, str]) -> str:
    """`node 2 (host-c)`; many nodes by their numbers alone."""
    numbers = sorted(set(nodes))
    if len(numbers) > _NAMED_HOSTS:
        return name_numbers("node", numbers)
    named = [f"{node} ({hosts[node]})" if node in hosts else str(node) for node in numbers]
    return f"{'node' if len(named) == 1 else 'nodes'} {', '.join(named)}"
