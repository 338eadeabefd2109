r"""Tokenize text into Megatron datasets (.bin/.idx). Example:

python tools/preprocess_data.py --input books.jsonl.gz --output-prefix data/books --tokenizer-model tokenizer.model \
    --append-eod --workers 8 --on-error skip

writes data/books_text_document.bin, .idx and .json. Train on them with `--data-path data/books_text_document`.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.data.preprocess.preprocess_flags import MEGATRON_PREPROCESS_FLAGS, check_tokenizer_flags
from megatron_fwpkm.data.preprocess.preprocess_options import PreprocessOptions


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), PreprocessOptions)


def check_shard_flags(parser: Parser, options: PreprocessOptions) -> None:
    """End with a usage error where it is not clear which shard is meant."""
    number = options.num_shards
    all_of = "--ray-address" if options.ray_address is not None else "--merge-shards" if options.merge_shards else ""
    if options.ray_address is not None and options.merge_shards:
        parser.error("--ray-address also joins the parts; remove --merge-shards")
    if options.ray_address is None and options.shard_retries is not None:
        parser.error(f"--shard-retries {options.shard_retries} has no effect without --ray-address: give it, too")
    if all_of and (number < 2 or options.shard_id is not None):
        parser.error(f"{all_of} requires --num-shards of at least 2, and no --shard-id")
    if number > 1 and options.shard_id is None and not all_of:
        parser.error(f"--num-shards {number} requires --shard-id, an integer from 0 to {number - 1}")


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the corpus and print a report."""
    parser = build_parser()
    options = parse_tool(parser, PreprocessOptions, argv, MEGATRON_PREPROCESS_FLAGS)
    check_shard_flags(parser, options)
    check_tokenizer_flags(options.data)
    from megatron_fwpkm.data.preprocess.run import preprocess
    from megatron_fwpkm.data.preprocess.shards import merge_shards
    from megatron_fwpkm.data.progress_report import table

    if options.ray_address is not None:
        from megatron_fwpkm.data.preprocess.on_ray import preprocess_on_ray

        print(table(preprocess_on_ray(options).rows()))
        return 0
    if options.merge_shards:
        print(table(merge_shards(options).rows()))
        return 0
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
