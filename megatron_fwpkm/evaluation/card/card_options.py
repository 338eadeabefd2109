"""The options of tools/build_card.py. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...config.tool_options import Metavar


@dataclass(frozen=True)
class CardOptions:
    """The options of tools/build_card.py."""

    model: Annotated[str, Metavar("DIR")]
    """exported folder, whose README.md gets the section"""
    evaluation: Annotated[tuple[str, ...], Metavar("DIR")]
    """output folders of tools/evaluate_needle.py, evaluate_perplexity.py and evaluate_domains.py on this folder"""
