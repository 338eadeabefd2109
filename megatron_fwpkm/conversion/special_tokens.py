"""Which tokens of a checkpoint's tokenizer begin and end texts, and which one pads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..config import DataConfig
from ..hf import FwPKMHFConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..checkpoint.checkpoint_reader import CheckpointContents

PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
"""Special tokens that are for padding, whether or not a tokenizer says so."""
RARE = "\U000f1234"
"""A character of nobody's vocabulary: bytes of it, or unknown."""
T = TypeVar("T", int, str)


@dataclass(frozen=True)
class SpecialIds:
    """Token ids, None where there is none."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None


def begins_with_bos(contents: CheckpointContents) -> bool:
    """Whether all documents of training are known to begin with BOS."""
    return contents.documents.get("prepend_bos") is True


def bos_doubt(contents: CheckpointContents, tokenizer: PreTrainedTokenizerFast | None) -> str | None:
    """One line where the checkpoint does not tell whether documents began with the BOS that its tokenizer has."""
    if tokenizer is None or tokenizer.bos_token is None or contents.documents.get("prepend_bos") is not None:
        return None
    reason = "its datasets differ or do not say" if contents.documents else "an earlier version wrote it"
    return (
        f"{contents.path} does not say whether the training documents began with BOS ({reason}): the exported "
        "tokenizer does not add it to a text"
    )


def special_tokens_fit(contents: CheckpointContents, config: FwPKMHFConfig, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether an export's tokenizer begins texts as documents of training began, and names the model's special ids."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    begin = [tokenizer.bos_token_id] if begins_with_bos(contents) else []
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    told = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    return tokenizer("a").input_ids == begin + plain and ids == told


def choose_pad(
    own: T | None, unk: T | None, bos: T | None, eos: T | None, *, unk_occurs: bool, bos_occurs: bool
) -> T | None:
    """The tokenizer's own pad token, or the token that can best stand in without a new id.

    Collators leave pad tokens out of the loss and `generate` takes them for padding, wherever they stand: so a token
    that no text has comes first. With EOS, the usual way out, a fine-tuned model never learns to end a text.

    Args:
        own: the tokenizer's pad token.
        unk: its unknown token.
        bos: its BOS.
        eos: its EOS.
        unk_occurs: texts may need `unk`, for the tokenizer cannot spell every text.
        bos_occurs: texts begin with `bos`.
    """
    order = (own, None if unk_occurs else unk, None if bos_occurs else bos, unk, eos)
    return next((token for token in order if token is not None), None)


def name_pad_token(tokenizer: PreTrainedTokenizerFast, bos_occurs: bool) -> None:
    """Give a tokenizer that has none a pad token."""
    own = tokenizer.pad_token or next((name for name in PAD_NAMES if name in tokenizer.get_added_vocab()), None)
    occurs = tokenizer.unk_token_id in tokenizer(RARE, add_special_tokens=False).input_ids
    tokenizer.pad_token = choose_pad(
        own, tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, unk_occurs=occurs, bos_occurs=bos_occurs
    )


def sentencepiece_ids(path: Path, bos_occurs: bool) -> SpecialIds:
    """The ids of a SentencePiece model's tokens, without its conversion."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    unk, bos, eos, own = (
        None if token < 0 else token
        for token in (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id())
    )
    for name in PAD_NAMES:
        token = processor.piece_to_id(name)
        if own is None and processor.is_control(token):
            own = token
    occurs = unk in processor.encode(RARE)
    return SpecialIds(bos, eos, choose_pad(own, unk, bos, eos, unk_occurs=occurs, bos_occurs=bos_occurs))


def tiktoken_ids(data: DataConfig, bos_occurs: bool) -> SpecialIds:
    """The ids of the special tokens before tiktoken ranks."""
    names = data.tiktoken_special_tokens
    own = next((names.index(name) for name in PAD_NAMES if name in names), None)
    bos, eos = names.index("<s>") if "<s>" in names else None, names.index("</s>")
    return SpecialIds(bos, eos, choose_pad(own, None, bos, eos, unk_occurs=False, bos_occurs=bos_occurs))
