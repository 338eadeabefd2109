"""Split a dataset (.bin/.idx) by documents into training, validation and test data. Example:

python tools/split_dataset.py --input data/all --output-prefix data/all --shares 98,1,1 --deduplicate

writes data/all_train, data/all_valid and data/all_test, for --train-data-path, --valid-data-path and --test-data-path.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import run_cli, tool_parser


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers such as 98,1,1") from None


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--input", required=True, metavar="PREFIX", help="prefix of the dataset to split")
    add("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX_train, PREFIX_valid and PREFIX_test")
    shares = "relative shares of the documents; a part with share 0 is not written (default: 98,1,1)"
    add("--shares", type=_shares, default=[98.0, 1.0, 1.0], metavar="A,B,C", help=shares)
    add("--seed", type=int, default=1234, help="random seed of the split (default: 1234)")
    add("--deduplicate", action="store_true", help="drop documents whose tokens occurred before")
    add("--overwrite", action="store_true", help="replace existing datasets")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Split and print what came out."""
    args = build_parser().parse_args(argv)
    from megatron_fwpkm.data.indexed.merge_and_split import split
    from megatron_fwpkm.data.progress_report import table

    report = split(
        args.input, args.output_prefix, args.shares, seed=args.seed, deduplicate=args.deduplicate,
        overwrite=args.overwrite,
    )  # fmt: skip
    print(table(report.rows()))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
