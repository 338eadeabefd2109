"""Compare two runs bit for bit. Example:

python tools/compare_runs.py --before runs/quickstart --after runs/again

compares the logged numbers (metrics.jsonl, except timings), every results.csv and every exported weight of two
folders, and exits with status 1 if anything differs. The bits depend on the machine, the number of threads and the
library versions, so make both runs in the same environment.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import Metavar, add_tool_options, parse_tool


@dataclass(frozen=True)
class CompareOptions:
    """What the tool is asked for."""

    before: Annotated[str, Metavar("FOLDER")]
    """folder of the first run"""
    after: Annotated[str, Metavar("FOLDER")]
    """folder of the second run"""


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), CompareOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per compared file, and a verdict."""
    options = parse_tool(build_parser(), CompareOptions, argv)
    from megatron_fwpkm.evaluation.run_comparison import compare_runs

    found = compare_runs(Path(options.before), Path(options.after))
    print("\n".join(map(str, found)))
    different = sum(comparison.difference is not None for comparison in found)
    verdict = f"{different} different" if different else "all identical"
    print(f"{len(found)} file{'s' * (len(found) != 1)} compared, {verdict}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
