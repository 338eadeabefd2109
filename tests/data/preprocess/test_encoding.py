"""Blocks to tokens by one encoder."""

from __future__ import annotations

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.corpus.records import Block
from megatron_fwpkm.data.preprocess.encoding import BlockEncoder, EncodingOptions
from megatron_fwpkm.data.tokenizers import build_tokenizer


def test_parsing_control_tokens_of_a_tokenizer_that_has_none() -> None:
    data = DataConfig(tokenizer_type="ByteLevelTokenizer")
    options = EncodingOptions(data, ("text",), False, True, control_tokens="parse")
    encoder = BlockEncoder(options, build_tokenizer(data), lambda texts: [bytes([len(text), 0]) for text in texts])
    encoded = encoder.encode(Block("a", "jsonl", 1, b'{"text": "</s> is text"}\n', 0))
    assert encoded.tokens == (bytes([12, 0]),), "by the way of encoding that was chosen, whole texts at a time"
