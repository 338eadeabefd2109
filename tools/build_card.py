"""Add what was measured of an exported model to its card (README.md). Example:

python tools/build_card.py --model runs/quickstart/hf --evaluation runs/quickstart/needle runs/perplexity

The section says recall and what the memory does to ordinary loss, with intervals and commands. Run again, it is
replaced.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.evaluation.card.card_options import CardOptions


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), CardOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the section and print the path of the card."""
    options = parse_tool(build_parser(), CardOptions, argv)
    from megatron_fwpkm.evaluation.card.evaluation_section import add_to_card, read_evaluation
    from megatron_fwpkm.evaluation.model_loading import load_model

    evaluations = [read_evaluation(folder) for folder in options.evaluation]
    print(f"card: {add_to_card(options.model, evaluations, load_model(options.model, 'cpu').weights_digest())}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
