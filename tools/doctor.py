"""Show what is installed, which implementation each part of a run uses and why, and what to fix. Example:

python tools/doctor.py

exits with status 1 if training cannot run here.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool


@dataclass(frozen=True)
class DoctorOptions:
    """What the tool is asked for; names as its flags."""

    json: bool = False
    """print the diagnosis as JSON"""


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), DoctorOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Examine this machine and print the diagnosis."""
    arguments = parse_tool(build_parser(), DoctorOptions, argv)
    from megatron_fwpkm.training.doctor import examine, render

    diagnosis = examine()
    print(diagnosis.to_json() if arguments.json else render(diagnosis))
    return 0 if diagnosis.can_train else 1


if __name__ == "__main__":
    sys.exit(run_cli(main))
