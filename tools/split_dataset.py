"""Split a dataset (.bin/.idx) by documents into training, validation and test data. Example:

python tools/split_dataset.py --input data/all --output-prefix data/all --shares 98,1,1 --deduplicate

writes data/all_train, data/all_valid and data/all_test, for --train-data-path, --valid-data-path and --test-data-path.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import Metavar, add_tool_options, parse_tool


@dataclass(frozen=True)
class SplitOptions:
    """What the tool is asked for: the arguments of `split`."""

    input: Annotated[str, Metavar("PREFIX")]
    """prefix of the dataset to split"""
    output_prefix: Annotated[str, Metavar("PREFIX")]
    """writes PREFIX_train, PREFIX_valid and PREFIX_test"""
    shares: Annotated[str, Metavar("A,B,C")] = "98,1,1"
    """relative shares of the documents; a part with share 0 is not written"""
    seed: int = 1234
    """random seed of the split"""
    deduplicate: bool = False
    """drop documents whose tokens occurred before"""
    overwrite: bool = False
    """replace existing datasets"""


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), SplitOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Split the dataset and print a report."""
    parser = build_parser()
    args = parse_tool(parser, SplitOptions, argv)
    try:
        shares = [float(part) for part in args.shares.split(",")]
    except ValueError:
        parser.error(f"--shares {args.shares!r} is not three numbers such as 98,1,1")
    from megatron_fwpkm.data.indexed.merge_and_split import split
    from megatron_fwpkm.data.progress_report import table

    report = split(
        args.input, args.output_prefix, shares, seed=args.seed, deduplicate=args.deduplicate,
        overwrite=args.overwrite,
    )  # fmt: skip
    print(table(report.rows()))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
