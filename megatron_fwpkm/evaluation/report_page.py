"""The frame of every report: a single page that needs no other file and no network."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from .causality_verdict import CausalityCheck
from .result_files import json_text, write_atomically

_TEMPLATE = Path(__file__).with_name("report_page.html")
_FOLDERS_OF_ANY_MODEL = re.compile(
    r"hf|exports?|checkpoints?|models?|latest|outputs?|out|bf16|fp16|float32|bfloat16|float16|iter_\d+", re.IGNORECASE
)


def name_of_model(path: str) -> str:
    """The distinguishing part of the path of a model folder: `quickstart` of runs/quickstart/hf."""
    parts = [part for part in Path(path).absolute().parts[1:] if not _FOLDERS_OF_ANY_MODEL.fullmatch(part)]
    return parts[-1] if parts else path


@dataclass(frozen=True)
class Section:
    """A heading and its content, as HTML whose text is escaped."""

    heading: str
    html: str
    """Without headings, which the page numbers. Colours come from the page's classes and variables, pictures from
    `embedded_picture`. A script finds its elements from `document.currentScript`, not by id, since a page may show a
    part twice."""


@dataclass(frozen=True)
class ReportPart:
    """What an evaluation tells: a page of its own, and a part of a page of several evaluations."""

    name: str
    """Short, such as `perplexity`; says in a page of several parts which this is."""
    title: str
    """Of the browser's window, as text."""
    heading: str
    """Of the page, as text."""
    lead: str
    """A line or two on what was measured, as text."""
    sections: tuple[Section, ...]
    causality: CausalityCheck | None
    """The check, where it ran."""
    settings: Mapping[str, object]
    """What was asked for, by name; shown as text."""
    provenance: Mapping[str, str]
    """Where the numbers come from, by name."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "settings": {name: str(value) for name, value in self.settings.items()}}


def write_report(part: ReportPart, folder: Path) -> None:
    """Write report.html, which needs no other file, and report_part.json, which `tools/build_report.py` reads.

    Raises:
        OSError: `folder` cannot be written.
    """
    write_atomically(folder / "report_part.json", json_text(part.to_json()))
    write_atomically(folder / "report.html", render_page(part))


def render_page(part: ReportPart) -> str:
    """HTML of a page with this part."""
    common = [] if part.causality is None else [_causality(part.causality)]
    common.append(Section("Settings", definition_list((name, str(value)) for name, value in part.settings.items())))
    common.append(Section("Provenance", definition_list(part.provenance.items())))
    body = "\n".join(f"<h2>{escape(section.heading)}</h2>\n{section.html}" for section in (*part.sections, *common))
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(part.title), heading=escape(part.heading), lead=escape(part.lead), sections=body
    )


def summary_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text, whose cells carry the names of their columns where a narrow screen stacks them."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(
        f"<tr><td>{escape(first)}</td>"
        + "".join(
            f'<td data-label="{escape(head)}">{escape(cell)}</td>' for head, cell in zip(heads[1:], rest, strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    return f'<table class="summary"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def embedded_picture(svg: bytes, alt: str) -> str:
    """A picture as wide as the page, within the page's own file."""
    data = base64.b64encode(svg).decode()
    return f'<img alt="{escape(alt)}" style="width:100%" src="data:image/svg+xml;base64,{data}">'


def definition_list(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they mean, as text, in two columns."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in pairs)}</dl>"


def _causality(check: CausalityCheck) -> Section:
    verdict, words = ("passed", "Passed") if check.passed else ("failed", "FAILED, do not trust these results")
    before = "identical bit for bit" if check.before_identical else "different"
    after = "different" if check.after_differs else "identical, so the change had no effect"
    return Section(
        "Causality check",
        f'<p class="{verdict}">{words}: after token {check.changed} of a context was changed, the logits before it are '
        f"{before} and the logits after it are {after}.</p>",
    )
