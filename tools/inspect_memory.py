r"""Look inside the memory of a model: which slots an answer reads, and which tokens of the text wrote them. Examples:

python tools/inspect_memory.py --model runs/quickstart/hf --haystack novel.txt.gz --length 4096 --depth 0.5 \
    --samples 50 --output runs/trace
python tools/inspect_memory.py --model runs/quickstart/hf --text notes.txt --prompt "The code young sister" \
    --max-new-tokens 4 --output runs/trace

writes trace.json, reads.csv, run.json, trace.png and report.html, in which a click on a token of the answer shows the
text that it came from. The samples are those of tools/evaluate_needle.py. The same command continues a killed run.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.evaluation.memory_trace.memory_trace_options import MemoryTraceOptions


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), MemoryTraceOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Trace, print the tables and the path of the report; returns 1 if the causality check fails."""
    args = parse_tool(build_parser(), MemoryTraceOptions, argv)
    settings = args.settings()
    options = args.run_options(("python", "tools/inspect_memory.py", *(sys.argv[1:] if argv is None else argv)))
    from megatron_fwpkm.evaluation.item_runner import check_run

    check_run(settings.model, options.output, options.workers)  # before torch is imported
    from megatron_fwpkm.evaluation.memory_trace.run import inspect_memory
    from megatron_fwpkm.evaluation.memory_trace.trace_tables import trace_text

    results = inspect_memory(settings, options)
    print(trace_text(results), f"report: {options.output / 'report.html'}", sep="\n")
    return results.causality.exit_status()


if __name__ == "__main__":
    sys.exit(run_cli(main))
