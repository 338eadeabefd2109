r"""Measure the perplexity of whole documents by position, with the memory on and off. Example:

python tools/evaluate_perplexity.py --model runs/quickstart/hf --text novel.txt.gz --output runs/perplexity

writes results.json, results.csv, documents.csv, run.json, losses.png, report.html and samples.jsonl. The same command
continues a killed run.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.evaluation.perplexity.perplexity_options import PerplexityOptions


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), PerplexityOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the tables and the path of the report; returns 1 if the causality check fails."""
    args = parse_tool(build_parser(), PerplexityOptions, argv)
    settings = args.settings()
    options = args.run_options(("python", "tools/evaluate_perplexity.py", *(sys.argv[1:] if argv is None else argv)))
    from megatron_fwpkm.evaluation.perplexity.loss_table import text_lines
    from megatron_fwpkm.evaluation.perplexity.run import measure_perplexity

    results = measure_perplexity(settings, options)
    print(text_lines(results), f"report: {options.output / 'report.html'}", sep="\n")
    return results.causality.exit_status()


if __name__ == "__main__":
    sys.exit(run_cli(main))
