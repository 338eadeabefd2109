"""The repository's own files, parsed once."""

from __future__ import annotations

import ast
import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_fwpkm"
_TEXT_SUFFIXES = {".py", ".sh", ".sbatch", ".md", ".yaml", ".yml", ".toml", ".txt", ".html", ".cfg", ""}
_NOT_SOURCE = {".venv", ".venv-mcore", ".venv-transformers", ".git", "runs", "build", "dist", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the repository's root, its text and its syntax tree."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text)

    @property
    def parts(self) -> tuple[str, ...]:
        """Components of the path."""
        return Path(self.path).parts

    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods, nested ones too."""
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@functools.cache
def repository_files() -> tuple[str, ...]:
    """Tracked and new files that git does not ignore; without git (in an image), all but environments and outputs."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        listed = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
    return tuple(
        sorted(name for name in listed if not _NOT_SOURCE & set(Path(name).parts) and (ROOT / name).is_file())
    )


@functools.cache
def python_sources() -> tuple[Source, ...]:
    """Every Python file of the repository."""
    return tuple(Source(name, (ROOT / name).read_text()) for name in repository_files() if name.endswith(".py"))


def room(name: str) -> tuple[Source, ...]:
    """The Python files of one room of the package."""
    return tuple(source for source in python_sources() if source.parts[:2] == (PACKAGE, name))


def shipped_sources() -> tuple[Source, ...]:
    """What users run or import: the package, entry points, tools and benchmarks."""
    shipped = {PACKAGE, "tools", "benchmarks", "pretrain.py"}
    return tuple(source for source in python_sources() if source.parts[0] in shipped)


def entry_points() -> tuple[Source, ...]:
    """pretrain.py and the tools."""
    return tuple(s for s in python_sources() if s.path == "pretrain.py" or s.parts[:-1] == ("tools",))


def text_files() -> tuple[tuple[str, str], ...]:
    """(path, text) of every text file, the licence and the reference vectors' description left out."""
    found = []
    for name in repository_files():
        path = ROOT / name
        if path.suffix in _TEXT_SUFFIXES and path.name != "LICENSE":
            found.append((name, path.read_text(errors="replace")))
    return tuple(found)
