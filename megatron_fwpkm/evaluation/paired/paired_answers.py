"""What a finished needle or RULER evaluation answered, sample by sample, from its samples.jsonl. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.counted_things import count_things
from ..ruler.answer_scores import answer_score
from ..ruler.ruler_tasks import RULER_TASKS

Key = tuple[object, ...]
_OF_THE_MODEL = frozenset({"weights", "yarn_factor", "has_memory", "model"})
_OF_THE_PROTOCOL = frozenset(
    {"protocol", "reads", "chunk", "memory_reset", "chain", "controls", "segment", "batch_size"}
)
"""Names of the first line of samples.jsonl that may differ: both evaluations then still ask the same."""


@dataclass(frozen=True)
class AnsweredSamples:
    """All samples of one evaluation."""

    folder: Path
    identity: Mapping[str, Any]
    """The first line, which says what decided the samples."""
    asked: Mapping[Key, str]
    """Question and right answer, by sample."""
    lengths: Mapping[Key, int]
    """Context length in tokens, by sample."""
    scores: Mapping[Key, Mapping[str, float]]
    """By sample and condition, 0 to 1; 1 is a correct answer. The measured condition comes first."""
    unfinished: str = ""
    """A line for people if the evaluation has not ended."""

    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions."""
        return tuple(next(iter(self.scores.values())))


def read_answers(flag: str, folder: Path) -> AnsweredSamples:
    """The samples of an evaluation's output folder.

    Args:
        flag: that named the folder, for messages.
        folder: with samples.jsonl.

    Raises:
        ValueError: there are no samples of needles or RULER.
    """
    path = folder / "samples.jsonl"
    if not path.is_file():
        raise ValueError(f"{flag} {folder} has no samples.jsonl; give the --output of a needle or RULER evaluation")
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        identity, *records = (json.loads(line) for line in lines)
        rows = [_read(record) for record in records]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{flag} {folder}: samples.jsonl is not one of a finished needle or RULER evaluation ({error})"
        ) from error
    if not rows:
        raise ValueError(f"{flag} {folder} has no finished sample; run its evaluation first")
    return AnsweredSamples(
        folder,
        identity,
        {key: asked for key, asked, _, _ in rows},
        {key: length for key, _, length, _ in rows},
        {key: scores for key, _, _, scores in rows},
        _unfinished(flag, folder, len(rows)),
    )


def check_same_samples(first: AnsweredSamples, second: AnsweredSamples) -> list[Key]:
    """The samples that both have, in the order of the first.

    Raises:
        ValueError: they are samples of different evaluations, or none is in both.
    """
    one, other = first.identity, second.identity
    names = {*one, *other} - _OF_THE_MODEL - _OF_THE_PROTOCOL
    if different := sorted(name for name in names if one.get(name) != other.get(name)):
        raise ValueError(
            f"--first {first.folder} and --second {second.folder} asked different samples (different: "
            f"{', '.join(different)}); compare evaluations that differ only in the model or in the protocol"
        )
    shared = [key for key in first.scores if key in second.scores]
    if not shared:
        raise ValueError(f"--first {first.folder} and --second {second.folder} have no sample in common")
    if other_words := [key for key in shared if first.asked[key] != second.asked[key]]:
        raise ValueError(
            f"--first {first.folder} and --second {second.folder} asked different questions in sample "
            f"{other_words[0]}; they cannot be paired"
        )
    return shared


def _unfinished(flag: str, folder: Path, samples: int) -> str:
    """What an evaluation that was killed, or still runs, has left of itself; empty for a finished one."""
    if parts := sorted(path.name for path in folder.glob("samples.rank*.jsonl")):
        return f"{flag} {folder} is not finished: {', '.join(parts)} is not read; its command takes it over"
    if not (folder / "results.json").is_file():
        found = count_things(samples, "sample")
        return f"{flag} {folder} is not finished (no results.json): {found} so far; its command continues it"
    return ""


def _read(values: Mapping[str, Any]) -> tuple[Key, str, int, dict[str, float]]:
    """Sample, what was asked, length, scores by condition."""
    length = int(values["length"])
    if "predictions" in values:
        answers, match = values["answers"], RULER_TASKS[values["task"]].match
        scores = {name: answer_score(text, answers, match) for name, text in values["predictions"].items()}
        return (values["task"], length, values["index"]), json.dumps(answers), length, scores
    asked = f"{values['texts']['question']} {values['texts']['value']}"
    return (length, values["depth"], values["index"]), asked, length, _needle_scores(values["answers"])


def _needle_scores(answers: Any) -> dict[str, float]:
    """Conditions are named as in the record's texts: `memory-on`, and after more reads `memory-on, 4 reads`."""
    if isinstance(answers, Mapping):  # as written before contexts could be read several times
        return {condition: float(answer["exact"]) for condition, answer in answers.items()}
    scores = {}
    for answer in answers:
        after = "" if answer["reads"] == 1 else f", {answer['reads']} reads"
        scores[f"{answer['condition']}{after}"] = float(answer["exact"])
    return scores
