"""Turn text into Megatron datasets (.bin/.idx). Example:

python tools/preprocess_data.py --input books.jsonl.gz --output-prefix data/books --tokenizer-model tokenizer.model \
    --append-eod --workers 8 --on-error skip

writes data/books_text_document.bin, .idx and .json, to be given to pretrain.py as --data-path data/books_text_document.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import run_cli
from megatron_fwpkm.data.preprocess_flags import add_flags, tokenizer_config

_PASSED_ON = (
    "accelerator", "append_eod", "bad_bytes",
    "blend_keys", "control_tokens", "num_shards", "on_error", "overwrite", "prepend_bos",
    "resume", "shard_id", "txt_documents", "verify", "workers",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the corpus and print what was done."""
    args = build_parser().parse_args(argv)
    from megatron_fwpkm.data.preprocess import PreprocessOptions, preprocess
    from megatron_fwpkm.data.progress import table

    options = PreprocessOptions(
        inputs=tuple(args.input),
        output_prefix=args.output_prefix,
        data=tokenizer_config(args),
        json_keys=tuple(args.json_keys),
        **{name: getattr(args, name) for name in _PASSED_ON},
    )
    try:
        report = preprocess(options)
    except BaseException:
        if options.journal_path.exists():
            print("what is done so far is kept: the same command with --resume goes on from there", file=sys.stderr)
        raise
    for line in report.bad_records:
        print(f"skipped {line}", file=sys.stderr)
    print(table(report.rows()))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
