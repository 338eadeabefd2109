"""Make one page of the reports of several evaluations, in the order given. Example:

python tools/build_report.py --inputs runs/needle runs/perplexity --output runs/report.html

reads report_part.json from the output folder of every evaluation. The page needs no other file and no network.
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
class PageOptions:
    """What the tool is asked for; names as its flags."""

    inputs: Annotated[tuple[str, ...], Metavar("FOLDER")]
    """output folders of finished evaluations, in the order of the page"""
    output: Annotated[str, Metavar("FILE")]
    """the page to write"""
    title: str = "Evaluations"
    """heading of the page"""


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), PageOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the parts and write the page."""
    options = parse_tool(build_parser(), PageOptions, argv)
    from megatron_fwpkm.evaluation.report_joining import join_reports

    join_reports([Path(folder) for folder in options.inputs], Path(options.output), options.title)
    print(f"report: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
