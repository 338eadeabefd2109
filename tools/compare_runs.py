"""Compare two runs bit for bit. Example:

python tools/compare_runs.py --before runs/quickstart --after runs/again

compares the logged numbers (metrics.jsonl, except timings), every results.csv and every exported weight of two
folders, and exits with status 1 if anything differs. The bits depend on the machine, the number of threads and the
library versions, so make both runs in the same environment.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_fwpkm.config.cli import run_cli, tool_parser


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = tool_parser(__doc__)
    parser.add_argument("--before", type=Path, required=True, metavar="FOLDER", help="folder of the first run")
    parser.add_argument("--after", type=Path, required=True, metavar="FOLDER", help="folder of the second run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per file that was compared, and a verdict."""
    arguments = build_parser().parse_args(argv)
    from megatron_fwpkm.evaluation.run_comparison import compare_runs

    found = compare_runs(arguments.before, arguments.after)
    print("\n".join(map(str, found)))
    different = sum(comparison.difference is not None for comparison in found)
    print(f"{different} of {len(found)} files differ" if different else f"all {len(found)} files are identical")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
