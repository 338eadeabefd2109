"""Configuration and tokenizer of an export folder, with one-line errors for whatever is damaged in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..hf import FwPKMHFConfig
from ..hf.json_files import AGAIN, check_json_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def read_export_config(folder: Path) -> FwPKMHFConfig:
    """The configuration of an export.

    Raises:
        ValueError: config.json or generation_config.json is damaged, or that of another kind of model.
    """
    file = folder / "config.json"
    check_json_files(folder)
    content = FwPKMHFConfig.get_config_dict(folder)[0]
    kind = content.get("model_type")
    if kind != FwPKMHFConfig.model_type:
        raise ValueError(
            f"{folder} contains a Hugging Face model of another kind: model_type in config.json is {kind!r}, not "
            f"{FwPKMHFConfig.model_type!r}"
        )
    try:
        config: FwPKMHFConfig = FwPKMHFConfig.from_pretrained(folder)
    except ValueError as error:
        error.add_note(f"in {file}")
        raise
    return config


def read_export_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer of an export.

    Args:
        folder: of the export.
        vocab_size: token embeddings of its model.

    Raises:
        ValueError: a file is damaged, or the tokenizer has ids that the model has not.
    """
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():  # Transformers would make another one from a tokenizer.model
        raise ValueError(f"{folder / 'tokenizer.json'} is missing; {AGAIN}")
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
        highest = max(tokenizer.get_vocab().values(), default=-1)
    except Exception as error:  # the package tokenizers raises nothing narrower
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: its tokenizer cannot be read ({reason}); {AGAIN}") from error
    if highest >= vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer has ids up to {highest}, but the model has {vocab_size} token embeddings: it is "
            "not the tokenizer that the model was trained with"
        )
    return tokenizer
