r"""Tokenize text into Megatron datasets (.bin/.idx). Example:

python tools/preprocess_data.py --input books.jsonl.gz --output-prefix data/books --tokenizer-model tokenizer.model \
    --append-eod --workers 8 --on-error skip

writes data/books_text_document.bin, .idx and .json. Train on them with `--data-path data/books_text_document`.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import run_cli, tool_parser
from megatron_fwpkm.config.command_line_errors import is_flag, join_complaints
from megatron_fwpkm.data.preprocess.preprocess_flags import add_flags, complaint_of_unknown, tokenizer_config

_PASSED_ON = (
    "accelerator", "append_eod", "bad_bytes",
    "blend_keys", "control_tokens", "num_shards", "on_error", "overwrite", "prepend_bos",
    "resume", "shard_id", "txt_documents", "verify", "workers",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = tool_parser(__doc__)
    add_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the corpus and print what was done."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [word for word in unknown if is_flag(word)] or unknown
        known = list(parser._option_string_actions)
        parser.error(join_complaints([complaint_of_unknown(word, known) for word in flags]))
    if args.num_shards > 1 and args.shard_id is None:
        parser.error(f"--num-shards {args.num_shards}: which of them? --shard-id goes from 0 to {args.num_shards - 1}")
    args.shard_id = args.shard_id or 0
    from megatron_fwpkm.data.preprocess.run import PreprocessOptions, preprocess
    from megatron_fwpkm.data.progress_report import table

    options = PreprocessOptions(
        inputs=tuple(args.input),
        output_prefix=args.output_prefix,
        data=tokenizer_config(args),
        json_keys=tuple(args.json_keys),
        **{name: getattr(args, name) for name in _PASSED_ON},
    )
    journal = options.journal_path
    before = journal.stat() if journal.exists() else None
    try:
        report = preprocess(options)
    except BaseException:
        if journal.exists() and journal.stat() != before:
            print("the work so far is kept: run the same command with --resume to continue", file=sys.stderr)
        raise
    for line in report.bad_records:
        print(f"skipped {line}", file=sys.stderr)
    if more := sum(report.skipped.values()) - len(report.bad_records):
        print(f"skipped {more:,} more", file=sys.stderr)
    print(table(report.rows()))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
