"""docs/design.md: every section that code or text cites as `DESIGN 2.5` is there, and its table knows every room."""

from __future__ import annotations

import re
from pathlib import Path

from tests.architecture.sources import PACKAGE, ROOT, text_files

CITATION = re.compile(r"\bDESIGN(?:'s)?,?\s+(?:sections?\s+)?(\d(?:\.\d)?)(?:\s+(?:to|and)\s+(\d(?:\.\d)?))?")


def sections() -> set[str]:
    """Numbers of the headings of docs/design.md."""
    return set(re.findall(r"^#{2,3} (\d(?:\.\d)?)\.? ", (ROOT / "docs/design.md").read_text(), re.MULTILINE))


def citations() -> list[tuple[str, str]]:
    """(file, section) of every citation in the repository."""
    return [
        (path, number)
        for path, text in text_files()
        for found in CITATION.finditer(re.sub(r"\n\s*#?\s*", " ", text))
        for number in found.groups()
        if number is not None
    ]


def test_every_cited_section_exists():
    found = citations()
    assert len(found) >= 30, "the pattern no longer finds the citations"
    missing = [f"{path} cites DESIGN {number}" for path, number in found if number not in sections()]
    assert not missing, missing


def test_every_mention_of_the_design_is_a_citation():
    """One that names no section leads a reader nowhere."""
    here = Path(__file__).relative_to(ROOT).as_posix()
    lost = [
        f"{path}: {text[mention.start() : mention.start() + 40]!r}"
        for path, text in text_files()
        if path != here
        for mention in re.finditer(r"\bDESIGN\b(?!\.md)", text)
        if not CITATION.match(re.sub(r"\n\s*#?\s*", " ", text[mention.start() : mention.start() + 80]))
    ]
    assert not lost, lost


def test_the_table_of_rooms_is_whole():
    rooms = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    named = set(re.findall(rf"^\| `{PACKAGE}/(\w+)/`", (ROOT / "docs/design.md").read_text(), re.MULTILINE))
    assert named == rooms
