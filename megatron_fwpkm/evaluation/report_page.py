"""The frame of every report: a single page that needs no other file and no network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import chain, count
from pathlib import Path
from string import Template
from typing import Any

from ..config.counted_things import count_things
from .causality_verdict import CausalityCheck
from .report_svg import embedded_picture, scoped_ids
from .result_files import json_text, write_atomically

__all__ = [
    "ReportPart", "Section", "definition_list", "embedded_picture", "name_of_model", "render_joined_page",
    "render_page", "summary_table", "write_report",
]  # fmt: skip

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
    sections = _numbered(part, part.name)
    links = [(anchor, section.heading) for anchor, section in sections]
    return _page(part.title, part.heading, part.lead, links, _html(sections, part.name, "h2"))


def render_joined_page(title: str, parts: Sequence[ReportPart]) -> str:
    """HTML of a page with these parts, in their order: a summary with links, then all that each part tells.

    Args:
        title: of the window and of the page, as text.
        parts: at least one; parts with the same name are told apart by their headings.
    """
    anchors = _anchors(parts)
    articles = (
        f'<article id="{anchor}" aria-labelledby="{anchor}-heading">\n<h2 id="{anchor}-heading">{escape(part.heading)}'
        f'</h2>\n<p class="lead">{escape(part.lead)}</p>\n{_html(_numbered(part, anchor), anchor, "h3")}\n</article>'
        for anchor, part in zip(anchors, parts, strict=True)
    )
    links = [(anchor, part.heading) for anchor, part in zip(anchors, parts, strict=True)]
    lead = f"{count_things(len(parts), 'evaluation')}, each with its controls, settings and provenance."
    return _page(title, title, lead, links, "\n".join((_summary(anchors, parts), *articles)))


def slug(text: str) -> str:
    """Text as an id of HTML: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"


def _anchors(parts: Sequence[ReportPart]) -> list[str]:
    """An id for every part, after its name; the second of a name ends with -2."""
    used, anchors = {"content", "scheme", "summary"}, list[str]()
    for part in parts:
        name = slug(part.name)
        free = next(one for one in chain([name], (f"{name}-{number}" for number in count(2))) if one not in used)
        used.add(free)
        anchors.append(free)
    return anchors


def _page(title: str, heading: str, lead: str, links: Iterable[tuple[str, str]], body: str) -> str:
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), heading=escape(heading), lead=escape(lead), sections=body,
        navigation="\n".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name in links),
    )  # fmt: skip


def _numbered(part: ReportPart, anchor: str) -> list[tuple[str, Section]]:
    """The sections of a part and those that all parts have, with their anchors."""
    common = [] if part.causality is None else [_causality(part.causality)]
    common.append(Section("Settings", definition_list((name, str(value)) for name, value in part.settings.items())))
    common.append(Section("Provenance", definition_list(part.provenance.items())))
    return [
        (f"{slug(anchor)}-{number}-{slug(section.heading)}", section)
        for number, section in enumerate((*part.sections, *common), 1)
    ]


def _html(sections: Iterable[tuple[str, Section]], anchor: str, heading: str) -> str:
    return "\n".join(
        f'<section aria-labelledby="{name}">\n<{heading} id="{name}">{escape(section.heading)}</{heading}>\n'
        f"{scoped_ids(section.html, slug(anchor))}\n</section>"
        for name, section in sections
    )


def _summary(anchors: Sequence[str], parts: Sequence[ReportPart]) -> str:
    """A line per part: where it is, what it measured, and whether its causality check passed."""
    lines = [
        f'<tr><th scope="row"><a href="#{anchor}">{escape(part.heading)}</a></th>'
        f'<td data-label="measured"><div>{escape(part.lead)}</div></td>'
        f'<td data-label="causality check">{_verdict(part.causality)}</td></tr>'
        for anchor, part in zip(anchors, parts, strict=True)
    ]
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("evaluation", "measured", "causality check"))
    return (
        '<section aria-labelledby="summary">\n<h2 id="summary">Summary</h2>\n<table class="summary words">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>\n</section>"
    )


def _verdict(check: CausalityCheck | None) -> str:
    if check is None:
        return '<div class="pale">not applicable</div>'
    return '<div class="passed">passed</div>' if check.passed else '<div class="failed">FAILED</div>'


def summary_table(lines: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of text, heads first. Cells carry the names of their columns where a narrow screen stacks them."""
    heads, *rows = lines
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(
            f'<td data-label="{escape(head)}">{escape(cell)}</td>' for head, cell in zip(heads[1:], rest, strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    name = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<table class="summary">{name}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


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
