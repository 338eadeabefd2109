"""Compare two evaluations of the same needles or RULER samples, such as those of two checkpoints. Example:

python tools/compare_evaluations.py --first runs/a/needle --second runs/b/needle --output runs/comparison

prints a table: McNemar's exact test and the paired difference with a bootstrap interval, by length and over all.
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
    """What the tool is asked for; names as its flags."""

    first: Annotated[str, Metavar("FOLDER")]
    """output folder of the evaluation that the other is compared with"""
    second: Annotated[str, Metavar("FOLDER")]
    """output folder of the other evaluation; it may differ only in the model or in the protocol"""
    conditions: Annotated[tuple[str, ...] | None, Metavar("NAME")] = None
    """condition of the first and of the second, or one for both, such as memory-off or "memory-on, 4 reads" (default:
    the measured ones)"""
    output: Annotated[str | None, Metavar("FOLDER")] = None
    """folder for results.json, results.csv and the report"""


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), CompareOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the table and write the files."""
    options = parse_tool(build_parser(), CompareOptions, argv)
    if options.conditions is not None and len(options.conditions) > 2:
        raise ValueError(f"--conditions has {len(options.conditions)} names: give one for both, or one for each")
    from megatron_fwpkm.evaluation.paired.paired_answers import read_answers
    from megatron_fwpkm.evaluation.paired.paired_table import compare_answers, paired_part
    from megatron_fwpkm.evaluation.result_files import aligned, write_atomically

    first, second = read_answers("--first", Path(options.first)), read_answers("--second", Path(options.second))
    results = compare_answers(first, second, options.conditions)
    print(*(f"{note}\n" for note in results.notes()), sep="", end="", file=sys.stderr)
    print(f"first:  {results.names[0]}\nsecond: {results.names[1]}\n{aligned(results.cells())}")
    if options.output is not None:
        from megatron_fwpkm.evaluation.provenance import provenance
        from megatron_fwpkm.evaluation.report_page import write_report

        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "results.json", results.to_json())
        write_atomically(folder / "results.csv", results.to_csv())
        words = ("python", "tools/compare_evaluations.py", *(sys.argv[1:] if argv is None else argv))
        write_report(paired_part(results, provenance(words)), folder)
        print(f"report: {folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
