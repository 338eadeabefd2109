r"""Measure long-context recall: hide facts (needles) in real text and ask for one of them. Example:

python tools/evaluate_needle.py --model runs/quickstart/hf --haystack novel.txt.gz --lengths 256 1024 4096 8192 \
    --depths 5 --samples 50 --needles 5 --workers 2 --output runs/needle

writes results.json, results.csv, run.json, heatmap.png, report.html and samples.jsonl; the same command
continues a killed run.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.evaluation.needle.needle_options import NeedleOptions


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), NeedleOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the table and the path of the report; returns 1 if the causality check fails."""
    args = parse_tool(build_parser(), NeedleOptions, argv)
    settings = args.settings()
    options = args.run_options(("python", "tools/evaluate_needle.py", *(sys.argv[1:] if argv is None else argv)))
    from megatron_fwpkm.evaluation.needle.early_checks import check_places

    check_places(settings, options.output, options.workers)  # before torch is imported
    from megatron_fwpkm.evaluation.needle.results import text_table
    from megatron_fwpkm.evaluation.needle.run import evaluate

    results = evaluate(settings, options)
    print(text_table(results), f"report: {options.output / 'report.html'}", sep="\n")
    return results.causality.exit_status()


if __name__ == "__main__":
    sys.exit(run_cli(main))
