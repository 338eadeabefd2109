"""The options of tools/evaluate_domains.py. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...config.tool_options import Metavar
from ..evaluation_options import EvaluationOptions
from .domain_settings import Domain, DomainSettings, ReadMode


@dataclass(frozen=True)
class DomainOptions(EvaluationOptions):
    """The options of tools/evaluate_domains.py; `settings` makes what is measured of them, and checks it."""

    model: Annotated[str, Metavar("DIR")]
    """exported folder or checkpoint with a fast-weight memory"""
    domain: Annotated[tuple[str, ...], Metavar("NAME=FILE[,FILE]")]
    """domains in the order of adaptation, with their text files, plain or gzip"""
    held_out: Annotated[float, Metavar("FRACTION")] = DomainSettings.held_out
    """share of every document, at its end, that is measured and never adapted to"""
    adapt_tokens: int | None = DomainSettings.adapt_tokens
    """adapt to only so many tokens of every domain (default: all)"""
    held_out_tokens: int | None = DomainSettings.held_out_tokens
    """measure only so many tokens of every domain (default: all)"""
    adapt_reads: int = DomainSettings.adapt_reads
    """how many times the text of a domain is read when it is adapted to"""
    read_mode: ReadMode = DomainSettings.read_mode
    """memory while losses are measured: frozen, or on, in a copy that is written as in training"""
    orders: int = DomainSettings.orders
    """orders of the domains to measure: the given one, and others that are drawn"""
    seed: int = DomainSettings.seed
    """seed of the other orders"""
    block: int = DomainSettings.block
    """tokens per block; intervals take the means of blocks as independent"""
    segment: int = DomainSettings.segment
    """tokens per call of the model; changes speed and memory, not the result"""

    def settings(self) -> DomainSettings:
        """What is measured. Raises ValueError for what cannot be."""
        return DomainSettings(
            self.model, tuple(map(Domain.parse, self.domain)), self.held_out, self.adapt_tokens, self.held_out_tokens,
            self.adapt_reads, self.read_mode, self.orders, self.seed, self.block, self.segment,
        )  # fmt: skip
