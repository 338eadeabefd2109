"""Convert checkpoints between Megatron-Core and Hugging Face form, and check the conversion. Examples:

python tools/convert_checkpoint.py export --checkpoint runs/mine/checkpoints --output runs/mine/hf
python tools/convert_checkpoint.py verify --checkpoint runs/mine/checkpoints --export runs/mine/hf

A checkpoint is a run's --save folder (its latest is taken) or one iteration's folder in it, from any parallel layout.
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
        help="of the weights; the memory's tables stay float32 (default: float32)")  # fmt: skip
    add("--memory", choices=["initial", "trained"],
        help="memory that every text starts from: the one before any write, or the one training left; default: trained "
        "for runs with --fwpkm-reset never, else initial")  # fmt: skip
    add("--no-tokenizer", action="store_true", help="leave the tokenizer out")
    add("--overwrite", action="store_true", help="replace an existing folder")
    verify = commands.add_parser(
        "verify", help="compare an export with its checkpoint", allow_abbrev=False, formatter_class=style
    )
    add = verify.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="checkpoint or --save folder of a run")
    add("--export", required=True, metavar="DIR", help="folder that export wrote")
    add("--lengths", nargs="+", type=positive_int, metavar="N",
        help="tokens of the comparisons; default: around the borders of chunks")  # fmt: skip
    add("--text", metavar="FILE", help="real text to compare on; default: a few sentences")
    add("--tolerance", type=positive_float, default=1e-5, metavar="X",
        help="largest difference of the logits from Megatron's, in float32 (default: 1e-05)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of the random tokens (default: 0)")
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
    from megatron_fwpkm.distributed.startup import distributed_run
    from megatron_fwpkm.hf.generation import read_text

    text = None if args.text is None else read_text(args.text)
    with quiet_libraries(), distributed_run(ParallelConfig(), TrainingConfig()):
        checks = verify(args.checkpoint, args.export, lengths=args.lengths, text=text, tolerance=args.tolerance,
                        seed=args.seed)  # fmt: skip
    print("\n".join(check.row() for check in checks))
    failed = sum(not check.passed for check in checks)
    print(f"{failed} of {len(checks)} comparisons failed" if failed else f"all {len(checks)} comparisons passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
