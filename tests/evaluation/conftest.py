"""A small tokenizer, text to hide facts in, a tiny Hugging Face model and settings that use them."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch

from megatron_fwpkm.config import DataConfig, NeedleConfig
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer
from megatron_fwpkm.evaluation.needle.fact_kinds import WordFacts
from megatron_fwpkm.evaluation.needle.settings import NeedleSettings

SYLLABLES = ("bar", "del", "fom", "gin", "lut"), ("an", "os", "ire"), ("to", "ka", "me", "vy")
WORDS = ["".join(parts) for parts in itertools.product(*SYLLABLES)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with tokenizer.model and config.json; in it novel.txt and novel.txt.gz of some 6,000 tokens."""
    root = tmp_path_factory.mktemp("evaluation")
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=8)) + "." for _ in range(700)]
    (root / "novel.txt").write_text(" ".join(sentences))
    (root / "novel.txt.gz").write_bytes(gzip.compress((root / "novel.txt").read_bytes()))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences, *(f"The code {word} {word}." for word in WORDS)]),
        model_prefix=str(root / "tokenizer"), vocab_size=420, model_type="bpe", byte_fallback=True, minloglevel=2,
        hard_vocab_limit=False, max_sentence_length=10000,
    )  # fmt: skip
    (root / "config.json").write_text(json.dumps({"model_type": "fwpkm", "vocab_size": 423, "fwpkm_layers": [1]}))
    return root


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer."""
    file = str(folder / "tokenizer.model")
    return build_tokenizer(DataConfig(tokenizer_type="SentencePieceTokenizer", tokenizer_model=file))


@pytest.fixture(scope="session")
def spec(tokenizer: Tokenizer) -> WordFacts:
    """Facts in the default wording."""
    return WordFacts.from_config(NeedleConfig(), tokenizer)


@pytest.fixture(scope="session")
def make_settings(folder: Path) -> Callable[..., NeedleSettings]:
    """make_settings(lengths=..., ...): settings over the folder's text."""

    def make(**changes) -> NeedleSettings:
        values = {"lengths": (128, 512), "samples": 5, "needles": 3} | changes
        if isinstance(values["samples"], int):
            values["samples"] = (values["samples"],)
        return NeedleSettings(str(folder), (str(folder / "novel.txt.gz"),), **values)

    return make


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Tokenizer):
    """An untrained Hugging Face model with one memory and windows of 8 tokens, as of a fixed seed."""
    from megatron_fwpkm.hf.configuration_fwpkm import FwPKMHFConfig
    from megatron_fwpkm.hf.modeling_fwpkm import FwPKMForCausalLM

    torch.manual_seed(3)
    config = FwPKMHFConfig(
        vocab_size=tokenizer.vocab_size + 3, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, attention_windows=[8, 8], initializer_range=0.3, fwpkm_layers=[1],
        fwpkm_num_subkeys=16, fwpkm_key_dim=16, fwpkm_value_dim=16, fwpkm_topk=4, fwpkm_chunk_size=32,
    )  # fmt: skip
    return FwPKMForCausalLM(config).eval()
