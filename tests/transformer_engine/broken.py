"""Packages that look like Transformer Engine or Apex and are not whole, for the path of a process."""

from __future__ import annotations

from pathlib import Path

_HALF_INSTALLED = 'raise RuntimeError("only the metapackage is here\\nand more lines")\n'


def half_installed_transformer_engine(folder: Path) -> None:
    """What the package without its kernels does: everything but an ImportError."""
    _package(folder / "transformer_engine", _HALF_INSTALLED)


def foreign_apex(folder: Path) -> None:
    """Another project of that name, as on PyPI."""
    _package(folder / "apex", "ROUTES = ()\n")


def _package(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(text)
