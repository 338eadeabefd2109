"""Show what is installed, which implementation each part of a run uses and why, and what to fix. Example:

python tools/doctor.py

exits with status 1 if training cannot run here.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import run_cli, tool_parser


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = tool_parser(__doc__)
    parser.add_argument("--json", action="store_true", help="print the diagnosis as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Examine this machine and print the diagnosis."""
    arguments = build_parser().parse_args(argv)
    from megatron_fwpkm.training.doctor import examine, render

    diagnosis = examine()
    print(diagnosis.to_json() if arguments.json else render(diagnosis))
    return 0 if diagnosis.can_train else 1


if __name__ == "__main__":
    sys.exit(run_cli(main))
