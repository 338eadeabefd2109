"""The forms of results: JSON, CSV and a terminal's table, and writing that leaves a whole file or the former one."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def json_text(values: Mapping[str, Any]) -> str:
    """A results.json that people can read, too."""
    return json.dumps(values, indent=2) + "\n"


def run_json(provenance: Mapping[str, str], tokens_per_second: Mapping[Any, float]) -> str:
    """A run.json: where and when the results were made and how fast, which every run tells differently.

    Args:
        provenance: as `provenance.provenance` gives it.
        tokens_per_second: by whatever the evaluation tells apart.
    """
    speeds = {str(name): round(speed, 1) for name, speed in tokens_per_second.items()}
    return json_text({"provenance": dict(provenance), "tokens_per_second": speeds})


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A results.csv: a header line and the rows, which have the same columns; there is at least one."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells as columns of a terminal, ranged right; every line has as many."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as results show them: six decimals, and None for nan (JSON has no nan)."""
    return {name: _rounded(value) for name, value in values.items()}


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return None if value != value else round(value, 6)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the target and rename. Raises OSError, and leaves the former file, where that fails."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)
