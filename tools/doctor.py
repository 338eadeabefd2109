"""Show what is installed, which implementation each part of a run uses and why, and what to fix. Example:

python tools/doctor.py

exits with status 1 if training cannot run here. A container's health check is

python tools/doctor.py --quick --require-gpu
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
    quick: bool = False
    """look only at versions and at whether torch finds a GPU, in about a second; no library but torch is imported"""
    require_gpu: bool = False
    """count it as a reason not to train if torch finds no GPU"""


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), DoctorOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Examine this machine and print the diagnosis."""
    arguments = parse_tool(build_parser(), DoctorOptions, argv)
    from megatron_fwpkm.training import doctor

    diagnosis = doctor.examine_quickly() if arguments.quick else doctor.examine()
    if arguments.require_gpu:
        diagnosis = doctor.require_gpu(diagnosis)
    print(diagnosis.to_json() if arguments.json else doctor.render(diagnosis))
    return 0 if diagnosis.can_train else 1


if __name__ == "__main__":
    sys.exit(run_cli(main))
