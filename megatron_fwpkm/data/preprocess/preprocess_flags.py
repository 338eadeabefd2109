"""The flags of tools/preprocess_data.py, and those of a tokenizer for other tools. Quick to import."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from ...config import DataConfig
from ...config.command_line_errors import is_flag
from ...config.data import TOKENIZERS_WITHOUT_FILE
from ...config.data_rules import idle_tiktoken_options

_KINDS = ("SentencePieceTokenizer", "HuggingFaceTokenizer", "TikTokenizer", "ByteLevelTokenizer", "NullTokenizer")


def add_tokenizer_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a tokenizer, as pretrain.py has them."""
    add, default = parser.add_argument, DataConfig()
    add("--tokenizer-type", choices=_KINDS, default=_KINDS[0], help=f"type of the tokenizer (default: {_KINDS[0]})")
    path = "SentencePiece .model file, folder with a tokenizer.json, or tiktoken ranks (.json, .tiktoken)"
    add("--tokenizer-model", metavar="PATH", help=path)
    size = "vocabulary size of NullTokenizer; truncates TikTokenizer's ranks; must match any other tokenizer"
    add("--vocab-size", type=int, metavar="N", help=size)
    pattern = "pattern by which TikTokenizer splits text into words (default: v2)"
    add("--tiktoken-pattern", choices=["v1", "v2"], default=default.tiktoken_pattern, help=pattern)
    reserved = f"ids that TikTokenizer reserves before its ranks (default: {default.tiktoken_num_special_tokens})"
    add(
        "--tiktoken-num-special-tokens", type=int, metavar="N", default=default.tiktoken_num_special_tokens,
        help=reserved,
    )  # fmt: skip
    names = f"names of the first special tokens of TikTokenizer (default: {' '.join(default.tiktoken_special_tokens)})"
    add(
        "--tiktoken-special-tokens", nargs="+", metavar="NAME", default=list(default.tiktoken_special_tokens),
        help=names,
    )  # fmt: skip


def add_json_keys(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add --json-keys."""
    syntax = "a.b is key b inside a; 'text|body' is the first of these keys that holds text (default: text)"
    help_text = f"{meaning}; {syntax}"
    parser.add_argument("--json-keys", "--json-key", nargs="+", default=["text"], metavar="KEY", help=help_text)


def tokenizer_config(args: argparse.Namespace) -> DataConfig:
    """The configuration of the tokenizer that the flags name. Raises ValueError for a flag that would do nothing."""
    data = DataConfig(
        tokenizer_type=args.tokenizer_type, tokenizer_model=args.tokenizer_model, vocab_size=args.vocab_size,
        tiktoken_pattern=args.tiktoken_pattern, tiktoken_num_special_tokens=args.tiktoken_num_special_tokens,
        tiktoken_special_tokens=tuple(args.tiktoken_special_tokens),
    )  # fmt: skip
    if data.tokenizer_model is not None and data.tokenizer_type in TOKENIZERS_WITHOUT_FILE:
        raise ValueError(
            f"--tokenizer-model {data.tokenizer_model} has no effect: --tokenizer-type {data.tokenizer_type} "
            f"reads no file: remove it, or give the --tokenizer-type of this file"
        )
    for problem in idle_tiktoken_options(data):
        raise ValueError(problem)
    return data


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag, named as the fields of PreprocessOptions."""
    add = parser.add_argument
    inputs = "files, patterns, folders or -; jsonl, JSON arrays, txt or parquet; plain, gzip, bzip2, xz or zstd"
    add("--input", nargs="+", required=True, metavar="PATH", help=inputs)
    add("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX_KEY_document.{bin,idx,json}")
    add_json_keys(parser, "JSON keys of the text; each makes a dataset, named after the (first) key")
    add("--blend-keys", action="store_true", help="write one dataset with the documents of all keys, record by record")
    add_tokenizer_flags(parser)
    add("--append-eod", action=argparse.BooleanOptionalAction, default=False, help="append EOD to every document")
    add("--prepend-bos", action="store_true", help="prepend BOS to every document")
    control = "treat a control token in the text, such as </s>, as text, as the token, or as a bad record"
    add("--control-tokens", choices=["text", "parse", "fail"], default="text", help=f"{control} (default: text)")
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="number of tokenizing processes; the output does not depend on it (default: 1)",
    )
    on_error = "for a bad record: stop, skip it, or skip it and keep it in PREFIX_quarantine.jsonl (default: fail)"
    add("--on-error", choices=["fail", "skip", "quarantine"], default="fail", help=on_error)
    txt = "what one document is in txt files; blank lines separate paragraphs (default: file)"
    add("--txt-documents", choices=["file", "paragraph", "line"], default="file", help=txt)
    bad_bytes = "invalid UTF-8 and NUL: reject the record, replace them with U+FFFD, or drop them (default: reject)"
    add("--bad-bytes", choices=["reject", "replace", "drop"], default="reject", help=bad_bytes)
    faster = "faster tokenization, checked to give the same tokens; auto selects the fastest available (default: auto)"
    add("--accelerator", choices=["auto", "gigatoken", "segments", "none"], default="auto", help=faster)
    add("--verify", type=int, default=0, metavar="N", help="read N documents back and compare them with their text")
    add("--resume", action="store_true", help="continue an interrupted run of the same command")
    add("--shard-id", type=int, metavar="I", help="which of the --num-shards parts this run makes, counted from 0")
    shards = "split the input into N similar parts, one run each; tools/merge_datasets.py joins them (default: 1)"
    add("--num-shards", type=int, default=1, metavar="N", help=shards)
    add("--overwrite", action="store_true", help="replace existing datasets")


_SENTENCES = "remove it: texts are not split into sentences, because language models read whole documents"
_FOLDER = "give --tokenizer-type HuggingFaceTokenizer and its folder as --tokenizer-model"
_PROGRESS = "remove it: progress is shown at fixed time intervals, and the speed at the end"
_WORKERS = "remove it: give --workers the number of cores; the output is the same with any number"
_PARTS = "run once per part with --num-shards and --shard-id, and join the parts with tools/merge_datasets.py"
_VOCABULARY = "remove it: the vocabulary is padded in training, not in the dataset"
_AS_IT_SAYS = "remove it: the settings in the tokenizer's file apply"
_NULL = "remove it: NullTokenizer has the ids below --vocab-size, and --vocab-size itself is the EOD id"

MEGATRON_PREPROCESS_FLAGS = {
    "append-bos": "write --prepend-bos, which begins every document with BOS",
    "chat-template": "remove it: a corpus is plain text; render dialogues as text first",
    "dataset-impl": "remove it: datasets are memory-mapped .bin and .idx files",
    "find-optimal-num-workers": _WORKERS,
    "keep-newlines": _SENTENCES,
    "keep-sequential-samples": "remove it: documents always keep their order, also with --num-shards",
    "lang": _SENTENCES,
    "log-interval": _PROGRESS,
    "max-documents": _WORKERS,
    "merge-file": _FOLDER,
    "null-tokenizer-eod-id": _NULL,
    "null-tokenizer-pad-id": _NULL,
    "pad-vocab-size": _VOCABULARY,
    "padded-vocab-size": _VOCABULARY,
    "make-vocab-size-divisible-by": _VOCABULARY,
    "partitions": _PARTS,
    "split-sentences": _SENTENCES,
    "tokenizer-hf-no-include-special-tokens": _AS_IT_SAYS,
    "tokenizer-hf-no-use-fast": _AS_IT_SAYS,
    "tokenizer-metadata": _AS_IT_SAYS,
    "tokenizer-sentencepiece-ignore-extra-whitespaces": _AS_IT_SAYS,
    "tokenizer-sentencepiece-legacy": _AS_IT_SAYS,
    "tokenizer-special-tokens": "give --tiktoken-special-tokens for TikTokenizer; other tokenizers define their own",
    "trust-remote-code": "remove it: code in a tokenizer's folder is never executed",
    "use-gigatoken": "write --accelerator gigatoken",
    "vocab-extra-ids": "remove it: the vocabulary is the one in the tokenizer's file",
    "vocab-file": _FOLDER,
    "workers-to-check": _WORKERS,
}
"""Flags of Megatron-LM's preprocessing that do not exist here -> what to do, a sentence without its full stop."""


def complaint_of_unknown(word: str, known: Sequence[str]) -> str:
    """What is wrong with a word of the command line that is no flag among `known` (with their dashes) and no value."""
    if not is_flag(word):
        return f"unexpected argument {word!r}: every option is a flag (--input {word}?)"
    flag = word.split("=")[0]
    name = flag.lstrip("-").replace("_", "-")
    for form in (name, name.removeprefix("no-"), name.removeprefix("disable-")):
        if form in MEGATRON_PREPROCESS_FLAGS:
            return f"unknown flag {flag}: {MEGATRON_PREPROCESS_FLAGS[form]}"
    near = difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.8)
    return f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else "")
