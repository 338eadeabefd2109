r"""Let the memory of a model read domains in turn and measure, after each, what it knows of all. Example:

python tools/evaluate_domains.py --model runs/quickstart/hf \
    --domain novel=novel.txt.gz plays=plays.txt.gz --output runs/domains

writes results.json, results.csv, run.json, forgetting.png, report.html and samples.jsonl. The same command continues a
run that was killed.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.evaluation.domains.domain_options import DomainOptions


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), DomainOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the tables and the path of the report; returns 1 if the causality check fails."""
    args = parse_tool(build_parser(), DomainOptions, argv)
    settings = args.settings()
    options = args.run_options(("python", "tools/evaluate_domains.py", *(sys.argv[1:] if argv is None else argv)))
    from megatron_fwpkm.evaluation.domains.forgetting import forgetting_text
    from megatron_fwpkm.evaluation.domains.run import measure_domains

    results = measure_domains(settings, options)
    print(forgetting_text(results), f"report: {options.output / 'report.html'}", sep="\n")
    return results.causality.exit_status()


if __name__ == "__main__":
    sys.exit(run_cli(main))
