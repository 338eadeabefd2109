r"""Train a grid of small models, measure each on held-out text, and compare them over seeds. Example:

python tools/run_ablation.py --grid examples/ablation/grid.yaml --data-path runs/ablation/corpus_text_document \
    --tokenizer-model runs/ablation/tokenizer.model --text held_out.txt --workers 2 --max-hours 2 --output runs/ablation

writes results.json, results.csv, ablation.png and report.html. The same command continues a killed run.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.evaluation.ablation.ablation_settings import AblationOptions


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), AblationOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, print the table and the path of the report."""
    options = parse_tool(build_parser(), AblationOptions, argv)
    run = options.run_options(("python", "tools/run_ablation.py", *(sys.argv[1:] if argv is None else argv)))
    from megatron_fwpkm.evaluation.ablation.ablation_table import table_text
    from megatron_fwpkm.evaluation.ablation.run import run_ablation

    results = run_ablation(options, run)
    print(table_text(results), f"report: {run.output / 'report.html'}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
