r"""Measure the thirteen tasks of RULER, with samples equal to those of NVIDIA's generator. Example:

python tools/evaluate_ruler.py --model runs/quickstart/hf --lengths 4096 8192 --samples 50 --haystack essays.txt \
    --squad dev-v2.0.json --hotpotqa hotpot_dev_distractor_v1.json --output runs/ruler

writes results.json, results.csv, run.json, scores.png, report.html and samples.jsonl; the same command continues a
killed run. Tasks whose files are not given are left out.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.evaluation.ruler.ruler_options import RulerOptions


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), RulerOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the tables and the path of the report; returns 1 if the causality check fails."""
    args = parse_tool(build_parser(), RulerOptions, argv)
    settings = args.settings()
    options = args.run_options(("python", "tools/evaluate_ruler.py", *(sys.argv[1:] if argv is None else argv)))
    from megatron_fwpkm.evaluation.item_runner import check_run

    check_run(settings.model, options.output, options.workers)  # before torch is imported
    from megatron_fwpkm.evaluation.ruler.ruler_results import ruler_text
    from megatron_fwpkm.evaluation.ruler.run import evaluate_ruler

    results = evaluate_ruler(settings, options)
    print(ruler_text(results), f"report: {options.output / 'report.html'}", sep="\n\n")
    return results.causality.exit_status()


if __name__ == "__main__":
    sys.exit(run_cli(main))
