"""What a domains evaluation measures. Free of torch, so that the tool's help is instant."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice, permutations
from math import factorial
from typing import Any, Literal

ReadMode = Literal["frozen", "on"]

ADAPTED = "adapted"
"""Condition of what is measured: the memory as the domains that were read have left it."""
MEMORY_OFF = "memory off"
"""Condition of the control: no memory is written, before or while losses are measured."""
READ_MODE_MEANINGS = {
    "frozen": "Held-out text is read with the memory as adaptation has left it; nothing is written while it is read.",
    "on": "Held-out text is read with a copy of the memory, which goes on to be written as in training.",
}
_MOST_SHUFFLED = 8
"""Most domains whose orders are all listed; with more, orders are drawn one by one."""


@dataclass(frozen=True)
class Domain:
    """Text of one kind."""

    name: str
    files: tuple[str, ...]
    """Plain or gzip; each is a document."""

    @classmethod
    def parse(cls, word: str) -> Domain:
        """From `NAME=FILE[,FILE]`. Raises ValueError for anything else."""
        name, equals, files = word.partition("=")
        paths = tuple(files.split(","))
        if not equals or not name.strip() or not all(paths):
            raise ValueError(f"--domain {word!r} is not NAME=FILE or NAME=FILE,FILE")
        return cls(name.strip(), paths)


@dataclass(frozen=True)
class DomainSettings:
    """One domains evaluation."""

    model: str
    """Folder of an export or a checkpoint with a fast-weight memory."""
    domains: tuple[Domain, ...]
    """In the order of adaptation."""
    held_out: float = 0.2
    """Share of every document, at its end, that is measured and never adapted to."""
    adapt_tokens: int | None = None
    """Most tokens of a domain that are adapted to; None for all."""
    held_out_tokens: int | None = None
    """Most tokens of a domain that are measured; None for all."""
    adapt_reads: int = 1
    """How many times the text of a domain is read when it is adapted to."""
    read_mode: ReadMode = "frozen"
    """Key of READ_MODE_MEANINGS."""
    orders: int = 1
    """Orders of the domains: the given one, and others drawn with the seed."""
    seed: int = 0
    """Of the other orders."""
    block: int = 512
    """Tokens that stand together for one number of an interval."""
    segment: int = 1024
    """Tokens per call of the model."""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be measured."""
        names = [domain.name for domain in self.domains]
        if len(names) < 2:
            raise ValueError("--domain needs two domains or more: with one there is nothing to forget")
        if len(set(names)) < len(names):
            raise ValueError(f"--domain names {', '.join(names)}: a name is used twice")
        if not 0 < self.held_out < 1:
            raise ValueError(f"--held-out {self.held_out} must be between 0 and 1, and neither of them")
        for flag, number, least in (
            ("--adapt-tokens", self.adapt_tokens, 2), ("--held-out-tokens", self.held_out_tokens, 2),
            ("--adapt-reads", self.adapt_reads, 1), ("--orders", self.orders, 1), ("--block", self.block, 1),
            ("--segment", self.segment, 1),
        ):  # fmt: skip
            if number is not None and number < least:
                raise ValueError(f"{flag} {number} must be at least {least}")
        if self.read_mode not in READ_MODE_MEANINGS:
            raise ValueError(f"--read-mode {self.read_mode!r} is not known; choose from frozen, on")
        if self.orders > factorial(len(names)):
            raise ValueError(
                f"--orders {self.orders}: {len(names)} domains have only {factorial(len(names))} different orders"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the domains, in the given order."""
        return tuple(domain.name for domain in self.domains)

    def all_orders(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the domains in the order of adaptation: the given order, then different ones by the seed."""
        given = tuple(range(len(self.domains)))
        rng, found = random.Random(self.seed), [given]
        if len(given) <= _MOST_SHUFFLED:
            others = list(islice(permutations(given), 1, None))
            return (given, *rng.sample(others, self.orders - 1))
        while len(found) < self.orders:
            drawn = tuple(rng.sample(given, len(given)))
            if drawn not in found:
                found.append(drawn)
        return tuple(found)

    def decides_a_record(self) -> dict[str, Any]:
        """Settings that change what one record holds; texts are told apart by their tokens."""
        values = asdict(self)
        kept = ("held_out", "adapt_tokens", "held_out_tokens", "adapt_reads", "read_mode", "block")
        return {name: values[name] for name in kept} | {"orders": self.all_orders(), "domains": self.names}


def after(names: Sequence[str], order: Sequence[int], stage: int) -> str:
    """What the memory has read after a stage, in words: `initial`, or the last domain."""
    return "initial" if stage == 0 else names[order[stage - 1]]
