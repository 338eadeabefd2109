"""Concatenate datasets (.bin/.idx) made with the same tokenizer. Examples:

python tools/merge_datasets.py --input data/books_text_document data/web_text_document --output-prefix data/all
python tools/merge_datasets.py --input 'data/web-*-of-00016_text_document' --output-prefix data/web_text_document
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import Flag, Metavar, add_tool_options, parse_tool


@dataclass(frozen=True)
class MergeOptions:
    """What the tool is asked for: the arguments of `merge`."""

    inputs: Annotated[tuple[str, ...], Flag("--input"), Metavar("PREFIX")]
    """datasets; patterns expand in alphabetical order"""
    output_prefix: Annotated[str, Metavar("PREFIX")]
    """writes PREFIX.bin, PREFIX.idx and PREFIX.json"""
    deduplicate: bool = False
    """drop documents whose tokens occurred before (100 bytes each)"""
    overwrite: bool = False
    """replace an existing dataset"""


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), MergeOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Merge the datasets and print a report."""
    args = parse_tool(build_parser(), MergeOptions, argv)
    from megatron_fwpkm.data.indexed.merge_and_split import merge
    from megatron_fwpkm.data.progress_report import table

    report = merge(**asdict(args))
    print(table(report.rows()))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
