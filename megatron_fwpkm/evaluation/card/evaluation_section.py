"""The section of a model card with what was measured: recall, ordinary loss with the memory and without, domains.

Results are read as the plain JSON that an evaluation has written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.counted_things import count_things
from ..needle.settings import WRITTEN_NOTHING
from ..result_files import write_atomically

_BEGIN, _END = "<!-- evaluation: begin -->", "<!-- evaluation: end -->"
_HEAD = f"""{_BEGIN}
## Evaluation

Brackets: 95 % intervals. Every evaluation also checked that no token changes what the model said before it.
"""


@dataclass(frozen=True)
class Evaluation:
    """The outputs of one evaluation."""

    folder: str
    results: Mapping[str, Any]
    provenance: Mapping[str, str]
    weights: str
    """Digest of the model that was measured."""


def read_evaluation(folder: str) -> Evaluation:
    """Read what an evaluation has left in its output folder.

    Raises:
        ValueError: there are no finished results, or those of an evaluation that a card has no section for.
    """
    for name in ("results.json", "run.json", "samples.jsonl"):
        if not (Path(folder) / name).is_file():
            raise ValueError(
                f"--evaluation {folder} has no {name}; give the --output of a finished evaluation (an unfinished one "
                "continues with its command)"
            )
    try:
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        run = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
        with open(Path(folder) / "samples.jsonl", encoding="utf-8") as log:
            weights = json.loads(log.readline())["weights"]
        found = Evaluation(folder, results, run["provenance"], weights)
        kind, passed = _kind(found), results["causality"]["passed"]
        if kind in _SECTIONS:
            _told(found)  # reads everything that the card needs
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        raise ValueError(
            f"--evaluation {folder} has results that are damaged or of an earlier version ({error!r}); measure again "
            "with the evaluation's command and --overwrite"
        ) from error
    if kind not in _SECTIONS:
        raise ValueError(f"--evaluation {folder} has results of the kind {kind}; a card has {', '.join(_SECTIONS)}")
    if not passed:
        raise ValueError(f"--evaluation {folder} failed its causality check: its numbers are not to be published")
    return found


def add_to_card(model: str, evaluations: Sequence[Evaluation], weights: str) -> Path:
    """Write the section into the README.md of an export, in the place of an earlier one; returns the file.

    Args:
        model: the folder.
        evaluations: what the section tells, in order.
        weights: digest of the folder's model.

    Raises:
        ValueError: the folder has no card, or an evaluation is of other weights.
    """
    path = Path(model) / "README.md"
    if not path.is_file():
        raise ValueError(f"--model {model} has no README.md; give a folder that tools/convert_checkpoint.py exported")
    for evaluation in evaluations:
        if evaluation.weights != weights:
            raise ValueError(
                f"--evaluation {evaluation.folder} measured other weights than those of {model}; measure that folder"
            )
    card = path.read_text(encoding="utf-8")
    card = re.sub(f"{_BEGIN}.*?{_END}\n*", "", card, flags=re.DOTALL)
    before, license_heading, after = card.partition("## License\n")
    section = evaluation_section(evaluations)
    text = f"{before}{section}\n{license_heading}{after}" if license_heading else f"{card.rstrip()}\n\n{section}"
    write_atomically(path, text)
    return path


def evaluation_section(evaluations: Sequence[Evaluation]) -> str:
    """Markdown of all of them, between the marks by which it is found again."""
    return "\n".join([_HEAD, *(_told(evaluation) for evaluation in evaluations), _END, ""])


def _told(evaluation: Evaluation) -> str:
    """What the section tells of one evaluation."""
    told = evaluation.provenance
    return (
        f"{_SECTIONS[_kind(evaluation)](evaluation.results)}\nMeasured on {told['date'][:10]} at commit "
        f"{told['commit']}:\n\n```bash\n{told['command']}\n```\n"
    )


def _kind(evaluation: Evaluation) -> str:
    """`needle` of `megatron_fwpkm needle evaluation 1`."""
    return str(evaluation.results["format"]).split()[1]


def _needle(results: Mapping[str, Any]) -> str:
    settings, rows = results["settings"], results["results"]
    whole = [row for row in rows if row["depth"] is None and row["where"] == "anywhere"]
    columns = list(dict.fromkeys((row["condition"], row["reads"]) for row in whole))
    lines = [["context", *(_column(name, reads, settings["reads"]) for name, reads in columns)]]
    for length in sorted({row["length"] for row in whole}):
        found = {(row["condition"], row["reads"]): row for row in whole if row["length"] == length}
        lines.append([f"{length:,} {settings['length_unit']}", *(_share(found[column]) for column in columns)])
    measured = columns[0][0].replace("-", " ")
    return (
        f"### Recall\n\nExact match of one of {settings['needles']} facts hidden in a text, by length of the text "
        f"(protocol {settings['protocol']}); the columns that do not begin with “{measured}” are controls.\n\n"
        f"{_table(lines)}"
    )


def _column(condition: str, reads: int, all_reads: Sequence[int]) -> str:
    """Name of a condition, with the number of reads of the text where that is not always 1."""
    name = condition.replace("-", " ")
    return name if list(all_reads) == [1] or condition in WRITTEN_NOTHING else f"{name}, {count_things(reads, 'read')}"


def _share(row: Mapping[str, Any]) -> str:
    return f"{row['exact_match']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _perplexity(results: Mapping[str, Any]) -> str:
    whole = [row for row in results["results"] if row["start"] == 0 and row["stop"] is None and row["source"] is None]
    losses = {row["condition"]: row for row in whole if row["versus"] is None}
    gaps = {row["versus"]: row for row in whole if row["versus"] is not None}
    measured = next(iter(losses))
    lines = [["condition", "loss (nats per token)", f"{measured} less this"]]
    for name, row in losses.items():
        lines.append([name, _interval(row), _interval(gaps[name], "+") if name in gaps else ""])
    verdict = f"\n{_verdict(gaps['off'])}\n" if measured == "on" and "off" in gaps else ""
    return (
        f"### Ordinary text\n\nLoss on {losses[measured]['tokens']:,} tokens, and differences on the same tokens.\n\n"
        f"{_table(lines)}{verdict}"
    )


def _verdict(gap: Mapping[str, Any]) -> str:
    if gap["low"] is None:
        return "The text is too short to tell whether the memory helps on it."
    if gap["high"] < 0:
        return "On this text the memory lowers the loss."
    if gap["low"] > 0:
        return "**On this text the memory does not help: it raises the loss.**"
    return "On this text no effect of the memory on the loss can be told from none."


def _domains(results: Mapping[str, Any]) -> str:
    cells = [row for row in results["results"] if row["order"] == 0 and row["condition"] == "adapted"]
    names, last = results["orders"][0], len(results["orders"][0])
    lines = [["domain", "loss before", "change right after reading it", "change in the end"]]
    for stage, name in enumerate(names, 1):
        found = {(row["stage"], row["versus"]): row for row in cells if row["domain"] == name}
        gaps = (_interval(found[reached, "initial"], "+") for reached in (stage, last))
        lines.append([name, _interval(found[0, None]), *gaps])
    return (
        f"### Domains\n\nThe memory reads {', then '.join(names)}, with all other weights frozen; loss on held-out "
        f"text of each (nats per token). Below zero: reading helped.\n\n{_table(lines)}"
    )


def _interval(row: Mapping[str, Any], sign: str = "") -> str:
    brackets = "" if row["low"] is None else f" [{row['low']:{sign}.4f}, {row['high']:{sign}.4f}]"
    return f"{row['loss']:{sign}.4f}{brackets}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{' --- |' * len(lines[0])}", *rest]) + "\n"


_SECTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "needle": _needle, "perplexity": _perplexity, "domains": _domains
}  # fmt: skip
