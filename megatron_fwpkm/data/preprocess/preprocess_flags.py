"""The flags of tools/preprocess_data.py, and those of a tokenizer for other tools. Quick to import."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from ...config import DataConfig
from ...config.data import TOKENIZERS_WITHOUT_FILE
from ...config.data_rules import idle_tiktoken_options
from ...config.usage import is_flag

_KINDS = ("SentencePieceTokenizer", "HuggingFaceTokenizer", "TikTokenizer", "ByteLevelTokenizer", "NullTokenizer")


def add_tokenizer_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a tokenizer, as pretrain.py has them."""
    add, default = parser.add_argument, DataConfig()
    add("--tokenizer-type", choices=_KINDS, default=_KINDS[0], help=f"kind of tokenizer (default: {_KINDS[0]})")
    path = "SentencePiece .model, folder with a tokenizer.json, or tiktoken ranks (.json, .tiktoken)"
    add("--tokenizer-model", metavar="PATH", help=path)
    size = "numbers of NullTokenizer; cuts the ranks of TikTokenizer; otherwise checked against the tokenizer"
    add("--vocab-size", type=int, metavar="N", help=size)
    pattern = "how TikTokenizer cuts text into words (default: v2)"
    add("--tiktoken-pattern", choices=["v1", "v2"], default=default.tiktoken_pattern, help=pattern)
    reserved = f"ids of TikTokenizer in front of its ranks (default: {default.tiktoken_num_special_tokens})"
    add(
        "--tiktoken-num-special-tokens", type=int, metavar="N", default=default.tiktoken_num_special_tokens,
        help=reserved,
    )  # fmt: skip
    names = f"names of the first of them (default: {' '.join(default.tiktoken_special_tokens)})"
    add(
        "--tiktoken-special-tokens", nargs="+", metavar="NAME", default=list(default.tiktoken_special_tokens),
        help=names,
    )  # fmt: skip


def add_json_keys(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add --json-keys."""
    syntax = "a.b is a key inside another, 'text|body' the first of these keys that holds text (default: text)"
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
            f"--tokenizer-model {data.tokenizer_model} does nothing with --tokenizer-type {data.tokenizer_type}, which "
            f"reads no file: leave it out, or name the type of the file"
        )
    for problem in idle_tiktoken_options(data):
        raise ValueError(problem)
    return data


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag, named as the fields of PreprocessOptions."""
    add = parser.add_argument
    inputs = "files, patterns, folders or -: jsonl, JSON arrays, txt, parquet; plain, gzip, bzip2, xz, zstd by content"
    add("--input", nargs="+", required=True, metavar="PATH", help=inputs)
    add("--output-prefix", required=True, metavar="PREFIX", help="datasets are PREFIX_KEY_document.{bin,idx,json}")
    add_json_keys(parser, "keys with text, a dataset each, named after its (first) key")
    add("--blend-keys", action="store_true", help="one dataset with the documents of all keys, record by record")
    add_tokenizer_flags(parser)
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
    bad_bytes = "what is no UTF-8, and NUL, makes the record bad, becomes U+FFFD, or is left out (default: reject)"
    add("--bad-bytes", choices=["reject", "replace", "drop"], default="reject", help=bad_bytes)
    faster = "a faster way to the same tokens, checked on every run; auto takes the fastest there is (default: auto)"
    add("--accelerator", choices=["auto", "gigatoken", "segments", "none"], default="auto", help=faster)
    add("--verify", type=int, default=0, metavar="N", help="read N documents back and compare them with their text")
    add("--resume", action="store_true", help="go on where a killed run of the same command was; nothing if it is done")
    add("--shard-id", type=int, metavar="I", help="which of --num-shards this run makes, from 0")
    shards = "cut the input into N parts of about one size, a run each; tools/merge_datasets.py joins them (default: 1)"
    add("--num-shards", type=int, default=1, metavar="N", help=shards)
    add("--overwrite", action="store_true", help="replace datasets that exist")


_SENTENCES = "remove it: texts are not split into sentences, for language models read whole documents"
_FOLDER = "give --tokenizer-type HuggingFaceTokenizer and its folder as --tokenizer-model"
_PROGRESS = "remove it: progress is shown by time, and the speed at the end"
_WORKERS = "remove it: give --workers the number of cores; the output is the same with any number"
_PARTS = "give --num-shards and --shard-id, a run per part, and join them with tools/merge_datasets.py"
_VOCABULARY = "remove it: the vocabulary is padded in training, not in a corpus"
_AS_IT_SAYS = "remove it: a tokenizer is used as its file says"
_NULL = "remove it: NullTokenizer takes --vocab-size numbers, and the next one ends documents"

MEGATRON_PREPROCESS_FLAGS = {
    "append-bos": "write --prepend-bos, which begins every document with BOS",
    "chat-template": "remove it: a corpus is plain text; write dialogues out in the text",
    "dataset-impl": "remove it: datasets are memory-mapped .bin and .idx files",
    "find-optimal-num-workers": _WORKERS,
    "keep-newlines": _SENTENCES,
    "keep-sequential-samples": "remove it: documents keep their order, also with --num-shards",
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
    "tokenizer-special-tokens": "give --tiktoken-special-tokens for TikTokenizer; other tokenizers name their own",
    "trust-remote-code": "remove it: code in a tokenizer's folder is never run",
    "use-gigatoken": "write --accelerator gigatoken",
    "vocab-extra-ids": "remove it: a tokenizer has the pieces of its file",
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
