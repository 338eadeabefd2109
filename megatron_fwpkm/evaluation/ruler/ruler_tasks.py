"""The thirteen tasks of RULER: how each is made, how many tokens its answer may have, how it is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["needles", "variables", "common words", "frequent words", "questions"]
Match = Literal["all", "part"]


@dataclass(frozen=True)
class RulerTask:
    """One row of the table."""

    name: str
    """As in RULER."""
    family: Family
    """Which generator makes it."""
    budget: int
    """Tokens that the model may generate; they count as part of the length."""
    match: Match = "all"
    """`all`: the score is the share of the answers found; `part`: 1 if any of them is found."""
    haystack: Literal["noise", "essay", "needles"] = "noise"
    """What needles are hidden in."""
    key_kind: Literal["words", "uuids"] = "words"
    """Keys of needles."""
    value_kind: Literal["numbers", "uuids"] = "numbers"
    """Values of needles."""
    keys: int = 1
    """Hidden keys."""
    values: int = 1
    """Values of every key."""
    queries: int = 1
    """Keys that are asked for."""
    source: Literal["", "haystack", "squad", "hotpotqa"] = ""
    """The option that names the files that the task is made of; none where it needs no file."""


def _needles(name: str, **changes: object) -> RulerTask:
    source = "haystack" if changes.get("haystack") == "essay" else ""
    return RulerTask(name, "needles", 128, source=source, **changes)  # type: ignore[arg-type]


RULER_TASKS = {
    task.name: task
    for task in (
        _needles("niah_single_1"),
        _needles("niah_single_2", haystack="essay"),
        _needles("niah_single_3", haystack="essay", value_kind="uuids"),
        _needles("niah_multikey_1", haystack="essay", keys=4),
        _needles("niah_multikey_2", haystack="needles"),
        _needles("niah_multikey_3", haystack="needles", key_kind="uuids", value_kind="uuids"),
        _needles("niah_multivalue", haystack="essay", values=4),
        _needles("niah_multiquery", haystack="essay", keys=4, queries=4),
        RulerTask("vt", "variables", 30),
        RulerTask("cwe", "common words", 120),
        RulerTask("fwe", "frequent words", 50),
        RulerTask("qa_1", "questions", 32, "part", source="squad"),
        RulerTask("qa_2", "questions", 32, "part", source="hotpotqa"),
    )
}
"""By name, in RULER's order."""
