"""Turn text into Megatron datasets (.bin/.idx). Example:

python tools/preprocess_data.py --input books.jsonl.gz --output-prefix data/books --tokenizer-model tokenizer.model \
    --append-eod --workers 8 --on-error skip

writes data/books_text_document.bin, .idx and .json, to be given to pretrain.py as --data-path data/books_text_document.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.config.cli import run_cli


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help="jsonl or txt files, plain or gzip (told by content)")
    add("--output-prefix", required=True, metavar="PREFIX", help="datasets are PREFIX_KEY_document.{bin,idx,json}")
    add(
        "--json-keys", nargs="+", default=["text"], metavar="KEY", help="keys with text, a dataset each (default: text)"
    )
    kinds = ["SentencePieceTokenizer", "HuggingFaceTokenizer", "NullTokenizer"]
    add("--tokenizer-type", choices=kinds, default=kinds[0], help=f"kind of tokenizer (default: {kinds[0]})")
    add("--tokenizer-model", metavar="PATH", help="SentencePiece .model file, or folder with a tokenizer.json")
    add("--vocab-size", type=int, metavar="N", help="numbers of NullTokenizer; otherwise checked against the tokenizer")
    add("--append-eod", action=argparse.BooleanOptionalAction, default=False, help="end every document with EOD")
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that tokenize; the output is the same (default: 1)",
    )
    on_error = "a bad record ends the run, is left out, or is also kept in PREFIX_quarantine.jsonl (default: fail)"
    add("--on-error", choices=["fail", "skip", "quarantine"], default="fail", help=on_error)
    txt = "what a document is in txt files; blank lines part paragraphs (default: file)"
    add("--txt-documents", choices=["file", "paragraph", "line"], default="file", help=txt)
    add("--overwrite", action="store_true", help="replace datasets that exist")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the corpus and print what was done."""
    args = build_parser().parse_args(argv)
    from megatron_fwpkm.data.preprocess import PreprocessOptions, preprocess
    from megatron_fwpkm.data.progress import table

    data = DataConfig(
        tokenizer_type=args.tokenizer_type, tokenizer_model=args.tokenizer_model, vocab_size=args.vocab_size
    )
    report = preprocess(
        PreprocessOptions(
            inputs=tuple(args.input),
            output_prefix=args.output_prefix,
            data=data,
            json_keys=tuple(args.json_keys),
            append_eod=args.append_eod,
            workers=args.workers,
            on_error=args.on_error,
            txt_documents=args.txt_documents,
            overwrite=args.overwrite,
        )
    )
    for line in report.bad_records:
        print(f"skipped {line}", file=sys.stderr)
    print(table(report.rows()))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
