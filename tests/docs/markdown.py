"""Reads the project's Markdown: its links, the paths it names and the commands it tells people to type."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PATH = re.compile(r"^[\w.-]+(/[\w.-]+)*/?$")
_MADE_BY_RUNS = ("runs/",)


@dataclass(frozen=True)
class Command:
    """One command line of a fenced shell block, with the file it stands in."""

    source: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.source}: {' '.join(self.words)}"


def markdown_files() -> list[Path]:
    """Tracked and new Markdown files of the repository, sorted."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()
    return sorted(ROOT / name for name in listed if (ROOT / name).is_file())


def commands(path: Path) -> list[Command]:
    """Commands in the file's `bash`, `sh` and `console` blocks; continuation lines joined, comments dropped."""
    found: list[Command] = []
    for language, body in _FENCE.findall(path.read_text()):
        if language not in {"bash", "sh", "console"}:
            continue
        for line in body.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if not line or line.startswith("#"):
                continue
            for part in re.split(r"\s(?:&&|\|)\s", line):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0]):
                    words = words[1:]
                if words:
                    found.append(Command(str(path.relative_to(ROOT)), tuple(words)))
    return found


def named_paths(path: Path) -> list[tuple[str, Path]]:
    """(text, resolved path) of every link target and every inline code that reads like a path of this repository."""
    text = path.read_text()
    prose = _FENCE.sub("", text)
    found = []
    for target in _LINK.findall(prose):
        if not re.match(r"^(https?:|mailto:|#)", target):
            found.append((target, path.parent / target.split("#")[0]))
    top_level = {entry.name for entry in ROOT.iterdir()}
    for code in _INLINE.findall(prose):
        if not _PATH.match(code) or code.startswith(_MADE_BY_RUNS):
            continue
        first = code.split("/")[0]
        if ("/" in code and first in top_level) or code in top_level:
            found.append((code, ROOT / code))
    return found
