"""Corpus, tokenizer and the needle mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import MAY_CHANGE, NOT_COMPARED, SAME_RUN, TOKENIZER, AtLeast, AtMost, Between


@dataclass(frozen=True)
class DataConfig:
    """Where training text comes from: .bin/.idx prefixes made by tools/preprocess_data.py."""

    data_path: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Dataset prefix, or WEIGHT PREFIX pairs of a blend, split by --split."""
    data_args_path: Annotated[str | None, NOT_COMPARED] = None
    """File with what --data-path would be given, words parted by white space; instead of it."""
    split: Annotated[str, SAME_RUN] = "969,30,1"
    """Shares of documents for training, validation and test (measured once, after the last iteration)."""
    train_data_path: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Training prefix or blend, instead of --data-path."""
    valid_data_path: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Validation prefix or blend, together with --train-data-path."""
    test_data_path: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Test prefix or blend, together with --train-data-path; measured once, after the last iteration."""
    per_split_data_args_path: Annotated[str | None, NOT_COMPARED] = None
    """JSON file {"train": ..., "valid": ..., "test": ...} with what the flags per split would be given, as text or as
    lists; instead of them."""
    data_cache_path: Annotated[str | None, NOT_COMPARED] = None
    """Folder for the index caches of the datasets; default beside the data."""
    tokenizer_type: Annotated[
        Literal[
            "SentencePieceTokenizer", "HuggingFaceTokenizer", "TikTokenizer", "ByteLevelTokenizer", "NullTokenizer"
        ],
        NOT_COMPARED,
        TOKENIZER,
    ] = "SentencePieceTokenizer"
    """Kind of tokenizer the corpus was made with."""
    tokenizer_model: Annotated[str | None, NOT_COMPARED, TOKENIZER] = None
    """Tokenizer file (SentencePiece, tiktoken ranks) or folder (Hugging Face)."""
    vocab_size: Annotated[int | None, AtLeast(1), AtMost(2**31 - 1), NOT_COMPARED, TOKENIZER] = None
    """Size of NullTokenizer, cuts the ranks of TikTokenizer; otherwise checked against the tokenizer when given."""
    tiktoken_pattern: Annotated[Literal["v1", "v2"], NOT_COMPARED, TOKENIZER] = "v2"
    """How TikTokenizer cuts text into words, Megatron-LM's two patterns."""
    tiktoken_num_special_tokens: Annotated[int, AtLeast(1), AtMost(2**20), NOT_COMPARED, TOKENIZER] = 1000
    """Ids of TikTokenizer in front of its ranks."""
    tiktoken_special_tokens: Annotated[
        tuple[str, ...], NOT_COMPARED, TOKENIZER
    ] = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
    """Names of the first special tokens of TikTokenizer."""
    num_workers: Annotated[int, AtLeast(0), AtMost(1024), NOT_COMPARED] = 0
    """Loader processes per rank; 0 loads in the training process."""
    eod_mask_loss: Annotated[bool, SAME_RUN] = False
    """Leave the prediction after an end-of-document token out of the loss."""
    reset_position_ids: Annotated[bool, SAME_RUN] = False
    """Start positions anew with every document."""
    reset_attention_mask: Annotated[bool, SAME_RUN] = False
    """Keep attention within a document: tokens see nothing of the documents before theirs."""


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
    """Share of training windows that get facts inserted; 0 leaves the text alone."""
    facts: Annotated[int, AtLeast(1), AtMost(2**16), SAME_RUN] = 10
    """Facts per window: each is stated in the first half and repeated in the second."""
    template: Annotated[str, SAME_RUN] = "The code {key} {value}."
    """Sentence of a fact, with {key} directly before {value}."""
    key_words: Annotated[int, AtLeast(1), AtMost(2**16), SAME_RUN] = 2
    """Words of a key, drawn from the tokenizer's whole-word pieces."""
    value_words: Annotated[int, AtLeast(1), AtMost(2**16), SAME_RUN] = 3
    """Words of a value, drawn from 32 other whole-word pieces."""
    answer_weight: Annotated[float, AtLeast(0), SAME_RUN] = 1.0
    """Weight of an answer token in the loss, beside 1 for every other token."""
