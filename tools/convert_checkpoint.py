"""Convert Megatron-Core checkpoints to the Hugging Face format, and verify the conversion. Examples:

python tools/convert_checkpoint.py export --checkpoint runs/mine/checkpoints --output runs/mine/hf
python tools/convert_checkpoint.py verify --checkpoint runs/mine/checkpoints --export runs/mine/hf

A checkpoint is the --save folder of a run (the latest iteration is used) or the folder of one iteration, in any layout.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import positive_float, positive_int, run_cli


def build_parser() -> argparse.ArgumentParser:
    """The tool's commands and flags."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=style)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{export,verify}")
    export = commands.add_parser(
        "export", help="write a self-contained Hugging Face folder", allow_abbrev=False, formatter_class=style
    )
    add = export.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="checkpoint or --save folder of a run")
    add("--output", required=True, metavar="DIR", help="folder to write")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32",
        help="data type of the weights; the fast weights stay float32 (default: float32)")  # fmt: skip
    add("--memory", choices=["initial", "trained"],
        help="memory that every text starts from: the initial one, or the one at the end of training (default: trained "
        "for runs with --fwpkm-reset never, else initial)")  # fmt: skip
    add("--no-tokenizer", action="store_true", help="do not export the tokenizer")
    add("--overwrite", action="store_true", help="replace an existing folder")
    verify = commands.add_parser(
        "verify", help="compare an export with its checkpoint", allow_abbrev=False, formatter_class=style
    )
    add = verify.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="checkpoint or --save folder of a run")
    add("--export", required=True, metavar="DIR", help="exported folder")
    add("--lengths", nargs="+", type=positive_int, metavar="N",
        help="lengths, in tokens, of the compared inputs (default: around multiples of the chunk size)")  # fmt: skip
    add("--text", metavar="FILE", help="file with text to compare on (default: a few sentences)")
    add("--tolerance", type=positive_float, default=1e-5, metavar="X",
        help="largest accepted difference from Megatron's logits, in float32 (default: 1e-05)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="random seed of the tokens (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert or compare; 1 when a comparison fails."""
    args = build_parser().parse_args(argv)
    if args.command == "export":
        from megatron_fwpkm.conversion.export import export

        folder = export(args.checkpoint, args.output, dtype=args.dtype, memory=args.memory,
                        tokenizer=not args.no_tokenizer, overwrite=args.overwrite)  # fmt: skip
        print(f"exported to {folder}")
        return 0
    from megatron_fwpkm.config import ParallelConfig, TrainingConfig
    from megatron_fwpkm.conversion.library_messages import quiet_libraries
    from megatron_fwpkm.conversion.verify import verify
    from megatron_fwpkm.engines.megatron_groups import megatron_run
    from megatron_fwpkm.hf.generation import read_text

    text = None if args.text is None else read_text(args.text)
    with quiet_libraries(), megatron_run(ParallelConfig(), TrainingConfig()):
        checks = verify(args.checkpoint, args.export, lengths=args.lengths, text=text, tolerance=args.tolerance,
                        seed=args.seed)  # fmt: skip
    print("\n".join(check.row() for check in checks))
    failed = sum(not check.passed for check in checks)
    print(f"{failed} of {len(checks)} comparisons failed" if failed else f"all {len(checks)} comparisons passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
