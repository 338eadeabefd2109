"""Convert checkpoints to the Hugging Face format and back, and verify the conversion. Examples:

python tools/convert_checkpoint.py export --checkpoint runs/mine/checkpoints --output runs/mine/hf
python tools/convert_checkpoint.py verify --checkpoint runs/mine/checkpoints --export runs/mine/hf
python tools/convert_checkpoint.py import --checkpoint runs/mine/hf --output runs/more/checkpoints
python tools/convert_checkpoint.py import --from sakana --checkpoint downloads/model --output runs/theirs/hf

A checkpoint is the --save folder of a run (the latest iteration is used) or the folder of one iteration. `import` makes
such a folder of an export, for pretrain.py --load, and an export of what the FwPKM paper's authors released.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence
from dataclasses import asdict

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.conversion.convert_options import ExportOptions, ImportOptions, VerifyOptions


def build_parser() -> Parser:
    """The tool's commands and flags."""
    parser = tool_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{export,import,verify}")
    export = commands.add_parser("export", help="write a self-contained Hugging Face folder")
    imports = commands.add_parser("import", help="write a checkpoint of an export, or an export of other code's model")
    verify = commands.add_parser("verify", help="compare an export with its checkpoint")
    for command, options in (export, ExportOptions), (imports, ImportOptions), (verify, VerifyOptions):
        add_tool_options(command, options)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert or compare; 1 when a comparison fails."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["verify"]:
        return run_verify(parse_tool(build_parser(), VerifyOptions, words))
    if words[:1] == ["import"]:
        imported = parse_tool(build_parser(), ImportOptions, words)
        from megatron_fwpkm.conversion.import_source import import_model

        print(import_model(imported))
        return 0
    options = parse_tool(build_parser(), ExportOptions, words)
    from megatron_fwpkm.conversion.export import export

    print(f"exported to {export(**asdict(options))}")
    return 0


def run_verify(options: VerifyOptions) -> int:
    """Compare an export with its checkpoint and print the comparisons; 1 when one fails."""
    from megatron_fwpkm.config import ParallelConfig, TrainingConfig
    from megatron_fwpkm.conversion.library_messages import quiet_libraries
    from megatron_fwpkm.conversion.verify import exported_from, verify
    from megatron_fwpkm.libraries.probes import installed

    installed()  # hides from Megatron what is only half installed
    from megatron_fwpkm.engines.megatron_groups import megatron_run
    from megatron_fwpkm.hf.generation import read_text

    text = None if options.text is None else read_text(options.text)
    with quiet_libraries(), megatron_run(ParallelConfig(), TrainingConfig()):
        checks = verify(options.checkpoint, options.export, lengths=options.lengths or None, text=text,
                        tolerance=options.tolerance, seed=options.seed)  # fmt: skip
    print(exported_from(options.export))
    print("\n".join(check.row() for check in checks))
    failed = sum(not check.passed for check in checks)
    print(f"{failed} of {len(checks)} comparisons failed" if failed else f"all {len(checks)} comparisons passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
