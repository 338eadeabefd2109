"""Models of Transformers that are not ours: which folders hold one, what is refused, how long their texts may be."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from megatron_fwpkm.evaluation.transformers_models import (
    holds_other_model,
    learned_positions,
    load_other_model,
    read_other_config,
)


@pytest.fixture
def gpt2(tmp_path):
    """A random GPT-2 in half precision and its folder."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=2)).half()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_a_saved_model_is_loaded_in_float32(gpt2):
    model, folder = gpt2
    assert holds_other_model(folder)
    loaded = load_other_model(folder)
    assert loaded.dtype == torch.float32 and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float())


@pytest.mark.parametrize("content", ['{"model_type": "fwpkm"}', "{}", "[1]", "no JSON", None])
def test_ours_and_what_is_no_model_are_not_of_another_kind(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert not holds_other_model(tmp_path)


def test_positions_are_limited_where_they_are_learned():
    assert learned_positions(GPT2Config(n_positions=64)) == 64
    assert learned_positions(LlamaConfig(max_position_embeddings=64)) is None


def test_what_cannot_be_read_is_refused(gpt2):
    _, folder = gpt2
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="is not a causal language model: its model_type is 'vit'"):
        read_other_config(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "nobody-knows"}))
    with pytest.raises(ValueError, match="--model .* cannot be read by Transformers: .*nobody-knows"):
        read_other_config(folder)


def test_missing_weights_are_refused(gpt2):
    model, folder = gpt2
    model.config.n_layer = 3
    model.config.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has no weights for transformer\.h\.2\..* missing in total"):
        load_other_model(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="--model .* cannot be read by Transformers"):
        load_other_model(folder)
