"""Show what a dataset (.bin/.idx) contains and check that it is complete. Example:

python tools/inspect_dataset.py --input data/books_text_document --check --samples 3 --tokenizer-model tokenizer.model

exits with status 1 if anything is wrong.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_fwpkm.config.cli import run_cli, tool_parser
from megatron_fwpkm.data.preprocess.preprocess_flags import add_tokenizer_flags, tokenizer_config


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--input", required=True, metavar="PREFIX", help="prefix of the dataset, without .bin or .idx")
    add("--check", action="store_true", help="also read every token to check vocabulary, EOD and SHA-256")
    add("--samples", type=int, default=0, metavar="N", help="show the text of N documents (requires the tokenizer)")
    add_tokenizer_flags(parser)
    add("--seed", type=int, default=1234, help="random seed for the choice of documents (default: 1234)")
    add("--png", type=Path, metavar="FILE", help="also plot a histogram of document lengths (requires matplotlib)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print counts, histogram, samples and problems."""
    args = build_parser().parse_args(argv)
    from megatron_fwpkm.data.indexed.inspection import (
        check_tokenizer,
        inspect_dataset,
        sample_documents,
        write_histogram,
    )
    from megatron_fwpkm.data.progress_report import table
    from megatron_fwpkm.data.tokenizers import build_tokenizer

    if args.png is not None and not args.png.absolute().parent.is_dir():
        raise ValueError(f"--png {args.png}: the folder {args.png.parent} does not exist")
    asked = args.samples > 0 or args.tokenizer_model is not None
    tokenizer = build_tokenizer(tokenizer_config(args)) if asked else None
    found = inspect_dataset(args.input, check_tokens=args.check)
    if tokenizer is not None:
        check_tokenizer(found.info, tokenizer)
    print(table(found.rows()))
    print(found.histogram_text())
    if args.png is not None:
        write_histogram(found, args.png)
        print(f"  plotted to {args.png}")
    if tokenizer is not None:
        for number, text in sample_documents(found.info, tokenizer, args.samples, args.seed):
            print(f"--- document {number}\n{text[:2000]}")
    for problem in found.problems:
        print(f"error: {args.input}: {problem}", file=sys.stderr)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
