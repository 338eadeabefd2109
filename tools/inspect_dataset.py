"""Show what a dataset (.bin/.idx) contains and check that it is complete. Example:

python tools/inspect_dataset.py --input data/books_text_document --check --samples 3 --tokenizer-model tokenizer.model

exits with status 1 if anything is wrong.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.field_metadata import TOKENIZER
from megatron_fwpkm.config.tool_options import Metavar, Only, add_tool_options, parse_tool
from megatron_fwpkm.data.preprocess.preprocess_flags import check_tokenizer_flags


@dataclass(frozen=True)
class InspectOptions:
    """What the tool is asked for; names as its flags."""

    input: Annotated[str, Metavar("PREFIX")]
    """prefix of the dataset, without .bin or .idx"""
    tokenizer: Annotated[DataConfig, Only(TOKENIZER)]
    check: bool = False
    """also read every token to check vocabulary, EOD and SHA-256"""
    samples: int = 0
    """show the text of N documents (requires the tokenizer)"""
    seed: int = 1234
    """random seed for the choice of documents"""
    png: Annotated[str | None, Metavar("FILE")] = None
    """also plot a histogram of document lengths (requires matplotlib)"""


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), InspectOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Print counts, histogram, samples and problems."""
    args = parse_tool(build_parser(), InspectOptions, argv)
    png = Path(args.png) if args.png else None
    from megatron_fwpkm.data.indexed import inspection
    from megatron_fwpkm.data.progress_report import table
    from megatron_fwpkm.data.tokenizers import build_tokenizer

    if png is not None and not png.absolute().parent.is_dir():
        raise ValueError(f"--png {png}: the folder {png.parent} does not exist")
    asked = args.samples > 0 or args.tokenizer.tokenizer_model is not None
    if asked:
        check_tokenizer_flags(args.tokenizer)
    tokenizer = build_tokenizer(args.tokenizer) if asked else None
    found = inspection.inspect_dataset(args.input, check_tokens=args.check)
    if tokenizer is not None:
        inspection.check_tokenizer(found.info, tokenizer)
    print(table(found.rows()))
    print(found.histogram_text())
    if png is not None:
        inspection.write_histogram(found, png)
        print(f"  plotted to {png}")
    if tokenizer is not None:
        for number, text in inspection.sample_documents(found.info, tokenizer, args.samples, args.seed):
            print(f"--- document {number}\n{text[:2000]}")
    for problem in found.problems:
        print(f"error: {args.input}: {problem}", file=sys.stderr)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
