"""The reports of several evaluations as one page, from the parts in their folders. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .causality_verdict import CausalityCheck
from .report_page import ReportPart, Section, render_joined_page
from .result_files import write_atomically

_TEXTS = ("name", "title", "heading", "lead")


def read_report_part(folder: Path) -> ReportPart:
    """The part that `write_report` left in a folder.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = folder / "report_part.json"
    if not folder.is_dir():
        raise ValueError(f"--inputs {folder} is not a folder; give the --output of an evaluation")
    if not path.is_file():
        raise ValueError(
            f"--inputs {folder} has no report_part.json: give the --output of a finished evaluation; an unfinished one "
            "continues with its command, and that of an earlier version writes this file when its command runs again"
        )
    try:
        values = json.loads(path.read_bytes())
        return _part(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--inputs {folder}: report_part.json is damaged ({error}); run the evaluation's command again to write it"
        ) from error


def join_reports(folders: Sequence[Path], output: Path, title: str) -> None:
    """Write the page of the parts in these folders, in their order.

    Raises:
        ValueError: a folder has no part, or a damaged one; `output` is a folder.
        OSError: `output` cannot be written.
    """
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; give the path of the page, such as {output / 'report.html'}")
    parts = [read_report_part(folder) for folder in folders]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, render_joined_page(title, parts))


def _part(values: dict[str, Any]) -> ReportPart:
    check = values["causality"]
    part = ReportPart(
        **{name: values[name] for name in _TEXTS},
        sections=tuple(Section(section["heading"], section["html"]) for section in values["sections"]),
        causality=None if check is None else CausalityCheck(**check),
        settings=dict(values["settings"].items()),
        provenance=dict(values["provenance"].items()),
    )
    texts = [*(values[name] for name in _TEXTS), *part.provenance.values()]
    texts += [text for section in part.sections for text in (section.heading, section.html)]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is something else")
    return part
