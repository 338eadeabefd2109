"""Train a SentencePiece BPE tokenizer with byte fallback and split digits. Example:

python tools/train_tokenizer.py --input books.jsonl.gz notes.txt --vocab-size 32000 --output-prefix data/tokenizer

writes data/tokenizer.model and data/tokenizer.vocab.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import run_cli, tool_parser
from megatron_fwpkm.data.preprocess.preprocess_flags import add_json_keys


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    inputs = "files, patterns or folders; jsonl, JSON arrays, txt or parquet; plain, gzip, bzip2, xz or zstd"
    add("--input", nargs="+", required=True, metavar="PATH", help=inputs)
    add("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX.model and PREFIX.vocab")
    add("--vocab-size", type=int, required=True, metavar="N", help="vocabulary size, including special tokens")
    add(
        "--character-coverage",
        type=float,
        default=0.9995,
        metavar="SHARE",
        help="fraction of the corpus's characters that get a piece; the rest are encoded as bytes (default: 0.9995)",
    )
    pad = "add a <pad> token with id 3, for batches of exported models; no document contains it (default: yes)"
    add("--pad-token", action=argparse.BooleanOptionalAction, default=True, help=pad)
    add("--extra-pieces", nargs="+", default=[], metavar="PIECE", help="strings that always become one piece")
    sample = "fraction of the documents to train on, chosen by hash; for corpora larger than memory (default: 1)"
    add("--sample-fraction", type=float, default=1.0, metavar="SHARE", help=sample)
    add_json_keys(parser, "JSON keys of the text; the tokenizer learns from all of them")
    add(
        "--normalization",
        choices=["identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"],
        default="identity",
        help="identity keeps every character; the others change characters and merge white space (default: identity)",
    )
    add("--on-error", choices=["fail", "skip"], default="fail", help="for a bad record: stop or skip (default: fail)")
    add("--overwrite", action="store_true", help="replace an existing tokenizer")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train and print what came out."""
    args = build_parser().parse_args(argv)
    from megatron_fwpkm.data.progress_report import table
    from megatron_fwpkm.data.tokenizers.train_tokenizer import TokenizerOptions, train_tokenizer

    report = train_tokenizer(
        TokenizerOptions(
            inputs=tuple(args.input),
            output_prefix=args.output_prefix,
            vocab_size=args.vocab_size,
            character_coverage=args.character_coverage,
            extra_pieces=tuple(args.extra_pieces),
            pad_token=args.pad_token,
            json_keys=tuple(args.json_keys),
            normalization=args.normalization,
            sample_fraction=args.sample_fraction,
            on_error=args.on_error,
            overwrite=args.overwrite,
        )
    )
    print(table(report.rows()))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
