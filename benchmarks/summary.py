"""One table of everything that benchmarks in a folder should have reached: `python -m benchmarks.summary FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import RESULTS, VERDICTS


def summarize(folder: Path) -> list[str]:
    """A line per goal of every JSON report in a folder, aligned; empty where none has goals."""
    rows = []
    for file in sorted(folder.glob("*.json")):
        report = json.loads(file.read_text())
        for goal in report.get("goals", []):
            rows.append((file.stem, goal["what"], goal["measured"], goal["wanted"], VERDICTS[goal["met"]]))
    table = [("report", "goal", "measured", "wanted", "met"), *rows] if rows else []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 where a goal was missed."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    lines = summarize(Path(arguments[0]) if arguments else RESULTS)
    print("\n".join(lines) if lines else "no goals here")
    return int(any(line.endswith(f"  {VERDICTS[False]}") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
