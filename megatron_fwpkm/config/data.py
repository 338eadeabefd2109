"""Corpus, tokenizer and the needle mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import MAY_CHANGE, NOT_COMPARED, SAME_RUN, TOKENIZER, AtLeast, AtMost, Between


@dataclass(frozen=True)
class DataConfig:
    """Training data: prefixes of the .bin and .idx files that tools/preprocess_data.py writes."""

    data_path: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Dataset prefix, or WEIGHT PREFIX pairs for a blend; --split divides it into training, validation and test
    data."""
    data_args_path: Annotated[str | None, NOT_COMPARED] = None
    """Text file that contains the arguments of --data-path, separated by white space; use it instead of --data-path."""
    split: Annotated[str, SAME_RUN] = "969,30,1"
    """Relative shares of the documents for training, validation and test; the test loss is measured once, after the
    last iteration."""
    train_data_path: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Dataset prefix or blend for training, instead of --data-path."""
    valid_data_path: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Dataset prefix or blend for validation; requires --train-data-path."""
    test_data_path: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Dataset prefix or blend for the test after the last iteration; requires --train-data-path."""
    per_split_data_args_path: Annotated[str | None, NOT_COMPARED] = None
    """JSON file {"train": ..., "valid": ..., "test": ...} that contains the arguments of --train-data-path,
    --valid-data-path and --test-data-path as text or lists; use it instead of them."""
    data_cache_path: Annotated[str | None, NOT_COMPARED] = None
    """Folder for the index caches of the datasets (default: next to the data)."""
    tokenizer_type: Annotated[
        Literal[
            "SentencePieceTokenizer", "HuggingFaceTokenizer", "TikTokenizer", "ByteLevelTokenizer", "NullTokenizer"
        ],
        NOT_COMPARED,
        TOKENIZER,
    ] = "SentencePieceTokenizer"
    """Type of the tokenizer that the corpus was tokenized with."""
    tokenizer_model: Annotated[str | None, NOT_COMPARED, TOKENIZER] = None
    """File (SentencePiece, tiktoken) or folder (Hugging Face) of the tokenizer."""
    vocab_size: Annotated[int | None, AtLeast(1), AtMost(2**31 - 1), NOT_COMPARED, TOKENIZER] = None
    """Vocabulary size of NullTokenizer; truncates the ranks of TikTokenizer; for other types it must match the
    tokenizer."""
    tiktoken_pattern: Annotated[Literal["v1", "v2"], NOT_COMPARED, TOKENIZER] = "v2"
    """Pattern by which TikTokenizer splits text into words: Megatron-LM's v1 or v2."""
    tiktoken_num_special_tokens: Annotated[int, AtLeast(1), AtMost(2**20), NOT_COMPARED, TOKENIZER] = 1000
    """Number of ids that TikTokenizer reserves for special tokens, before its ranks."""
    tiktoken_special_tokens: Annotated[
        tuple[str, ...], NOT_COMPARED, TOKENIZER
    ] = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
    """Names of the first special tokens of TikTokenizer."""
    num_workers: Annotated[int, AtLeast(0), AtMost(1024), NOT_COMPARED] = 0
    """Number of data-loading processes per rank; 0 loads in the training process."""
    eod_mask_loss: Annotated[bool, SAME_RUN] = False
    """Exclude the prediction that follows an end-of-document token from the loss."""
    reset_position_ids: Annotated[bool, SAME_RUN] = False
    """Restart position ids at every document."""
    reset_attention_mask: Annotated[bool, SAME_RUN] = False
    """Restrict attention to the current document: tokens do not attend to earlier documents."""


TOKENIZERS_WITHOUT_FILE = ("ByteLevelTokenizer", "NullTokenizer")
"""Tokenizer types that need no --tokenizer-model."""
MOST_NUMBERS = 2**31 - 2
"""The largest --vocab-size of NullTokenizer, which has one id more: ids are int32."""


@dataclass(frozen=True)
class NeedleConfig:
    """Facts mixed into training windows on the fly, so that a small model learns to use its memory.

    Every flag begins with --needle-.
    """

    fraction: Annotated[float, Between(0, 1), SAME_RUN] = 0.0
    """Fraction of the training windows that facts are inserted into; 0 leaves the text unchanged."""
    facts: Annotated[int, AtLeast(1), AtMost(2**16), SAME_RUN] = 10
    """Number of facts per window; each is stated in the first half and repeated in the second half."""
    template: Annotated[str, SAME_RUN] = "The code {key} {value}."
    """Sentence that states a fact; it contains {key} directly before {value}."""
    key_words: Annotated[int, AtLeast(1), AtMost(2**16), SAME_RUN] = 2
    """Number of words in a key, drawn from the tokenizer's whole-word tokens."""
    value_words: Annotated[int, AtLeast(1), AtMost(2**16), SAME_RUN] = 3
    """Number of words in a value, drawn from 32 other whole-word tokens."""
    answer_weight: Annotated[float, AtLeast(0), SAME_RUN] = 1.0
    """Weight of the tokens of an answer in the loss; every other token has weight 1."""
