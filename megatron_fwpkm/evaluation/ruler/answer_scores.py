"""RULER's metrics: which of the right answers are in a generated text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .ruler_tasks import Match

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(text: str) -> str:
    """A generated text as it is scored: control characters are line feeds, and none stands at the ends."""
    return _CONTROL.sub("\n", text.strip()).strip()


def answer_score(text: str, answers: Sequence[str], match: Match) -> float:
    """From 0 to 1: the share of the answers that the text contains, in any case of letters (`all`, RULER's
    string_match_all), or whether it contains one (`part`, string_match_part)."""
    found = [answer.lower() in cleaned(text).lower() for answer in answers]
    return float(any(found)) if match == "part" else sum(found) / len(found)
