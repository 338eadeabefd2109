"""The flags of tools/preprocess_data.py. Free of everything but the standard library."""

from __future__ import annotations

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag, named as the fields of PreprocessOptions."""
    add = parser.add_argument
    inputs = "files, patterns, folders or -: jsonl, JSON arrays, txt, parquet; plain, gzip, bzip2, xz, zstd by content"
    add("--input", nargs="+", required=True, metavar="PATH", help=inputs)
    add("--output-prefix", required=True, metavar="PREFIX", help="datasets are PREFIX_KEY_document.{bin,idx,json}")
    keys = "keys with text, a.b for a key inside another, a dataset each (default: text)"
    add("--json-keys", nargs="+", default=["text"], metavar="KEY", help=keys)
    add("--blend-keys", action="store_true", help="one dataset with the documents of all keys, record by record")
    kinds = ["SentencePieceTokenizer", "HuggingFaceTokenizer", "NullTokenizer"]
    add("--tokenizer-type", choices=kinds, default=kinds[0], help=f"kind of tokenizer (default: {kinds[0]})")
    add("--tokenizer-model", metavar="PATH", help="SentencePiece .model file, or folder with a tokenizer.json")
    add("--vocab-size", type=int, metavar="N", help="numbers of NullTokenizer; otherwise checked against the tokenizer")
    add("--append-eod", action=argparse.BooleanOptionalAction, default=False, help="end every document with EOD")
    add("--prepend-bos", action="store_true", help="begin every document with BOS")
    control = "a control token spelt out, such as </s>, stays text, becomes the token, or makes the record bad"
    add("--control-tokens", choices=["text", "parse", "fail"], default="text", help=f"{control} (default: text)")
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
    bad_bytes = "bytes that are not UTF-8 make the record bad, become U+FFFD, or are left out (default: reject)"
    add("--bad-bytes", choices=["reject", "replace", "drop"], default="reject", help=bad_bytes)
    faster = "a faster way to the same tokens, checked on every run; auto takes the fastest there is (default: auto)"
    add("--accelerator", choices=["auto", "gigatoken", "segments", "none"], default="auto", help=faster)
    add("--verify", type=int, default=0, metavar="N", help="compare N documents, one a megabyte, with their text")
    add("--resume", action="store_true", help="go on where a killed run of the same command was; nothing if it is done")
    add("--shard-id", type=int, default=0, metavar="I", help="which of --num-shards this run makes, from 0")
    shards = "cut the input into N equal parts, one run each; tools/merge_datasets.py joins them (default: 1)"
    add("--num-shards", type=int, default=1, metavar="N", help=shards)
    add("--overwrite", action="store_true", help="replace datasets that exist")
