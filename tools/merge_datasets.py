"""Concatenate datasets (.bin/.idx) made with the same tokenizer. Examples:

python tools/merge_datasets.py --input data/books_text_document data/web_text_document --output-prefix data/all
python tools/merge_datasets.py --input 'data/web-*-of-00016_text_document' --output-prefix data/web_text_document
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import run_cli, tool_parser


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PREFIX", help="datasets; patterns expand in alphabetical order")
    add("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx and PREFIX.json")
    add("--deduplicate", action="store_true", help="drop documents whose tokens occurred before (100 bytes each)")
    add("--overwrite", action="store_true", help="replace an existing dataset")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Merge and print what came out."""
    args = build_parser().parse_args(argv)
    from megatron_fwpkm.data.indexed.merge_and_split import merge
    from megatron_fwpkm.data.progress_report import table

    report = merge(args.input, args.output_prefix, deduplicate=args.deduplicate, overwrite=args.overwrite)
    print(table(report.rows()))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
