"""Flags that name a tokenizer, checked, and what to do instead of those of Megatron-LM's preprocessing."""

from __future__ import annotations

from ...config import DataConfig
from ...config.data import TOKENIZERS_WITHOUT_FILE
from ...config.data_rules import idle_tiktoken_options


def check_tokenizer_flags(data: DataConfig) -> None:
    """Raises ValueError for a flag that would do nothing with this tokenizer."""
    if data.tokenizer_model is not None and data.tokenizer_type in TOKENIZERS_WITHOUT_FILE:
        raise ValueError(
            f"--tokenizer-model {data.tokenizer_model} has no effect, because --tokenizer-type "
            f"{data.tokenizer_type} reads no file; remove it, or give the --tokenizer-type of this file"
        )
    for problem in idle_tiktoken_options(data):
        raise ValueError(problem)


_SENTENCES = "texts are not split into sentences, because language models read whole documents; remove it"
_FOLDER = "give --tokenizer-type HuggingFaceTokenizer and its folder as --tokenizer-model"
_PROGRESS = "progress is shown at fixed time intervals, and the speed at the end; remove it"
_WORKERS = "remove it, and set --workers to the number of cores; the output does not depend on it"
_PARTS = "run once per part with --num-shards and --shard-id, and join the parts with tools/merge_datasets.py"
_VOCABULARY = "the vocabulary is padded in training, not in the dataset; remove it"
_AS_IT_SAYS = "the settings in the tokenizer's file apply; remove it"
_NULL = "NullTokenizer has the ids below --vocab-size, and --vocab-size itself is the EOD id; remove it"

MEGATRON_PREPROCESS_FLAGS = {
    "append-bos": "use --prepend-bos, which begins every document with BOS",
    "chat-template": "a corpus is plain text: render dialogues as text first, and remove it",
    "dataset-impl": "datasets are memory-mapped .bin and .idx files; remove it",
    "find-optimal-num-workers": _WORKERS,
    "keep-newlines": _SENTENCES,
    "keep-sequential-samples": "documents always keep their order, even with --num-shards; remove it",
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
    "trust-remote-code": "code in a tokenizer's folder is never executed; remove it",
    "use-gigatoken": "use --accelerator gigatoken",
    "vocab-extra-ids": "the vocabulary is the one in the tokenizer's file; remove it",
    "vocab-file": _FOLDER,
    "workers-to-check": _WORKERS,
}
"""Flags of Megatron-LM's preprocessing that do not exist here -> what to do, a sentence without its full stop."""
