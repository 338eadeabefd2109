"""One interface to models with a memory and without: reading on is the same in one call and in many, and modes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from megatron_fwpkm.evaluation import text_model as room
from megatron_fwpkm.evaluation.block_losses import document_losses
from megatron_fwpkm.evaluation.causality import check_causality
from megatron_fwpkm.evaluation.text_model import text_model
from megatron_fwpkm.hf.modeling_fwpkm import FwPKMForCausalLM
from tests.evaluation.oracle import OracleModel

SMALL = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}  # fmt: skip


@pytest.fixture(params=["gpt2", "llama", "mistral", "plain", "memory"])
def model(request, tiny_model):
    """A random model of a kind."""
    torch.manual_seed(2)
    if request.param == "gpt2":
        config = GPT2Config(vocab_size=200, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
        return GPT2LMHeadModel(config).eval()
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    if request.param == "mistral":
        return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)).eval()
    return plain_model(tiny_model) if request.param == "plain" else tiny_model


def plain_model(tiny_model) -> FwPKMForCausalLM:
    """Our transformer without a memory layer."""
    config = type(tiny_model.config)(**tiny_model.config.to_dict() | {"fwpkm_layers": []})
    return FwPKMForCausalLM(config).eval()


@torch.inference_mode()
def test_a_clone_reads_on_as_the_original_would(model):
    """On other tokens, which leave the original as it is."""
    torch.manual_seed(5)
    text, on, other = (torch.randint(3, 200, (n,)).tolist() for n in (45, 6, 9))
    reader = text_model(model)
    past = reader.new_cache()
    reader.read(text, past)
    twin = reader.clone(past)
    reader.read(other, twin)
    streamed = reader.read(on, past)
    whole = reader.read(text + on, reader.new_cache())
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-4)
    assert not torch.equal(reader.read(on, twin), streamed)


@torch.inference_mode()
@pytest.mark.parametrize(("scale", "calls"), [("consistent", [7, 7, 7, 4]), ("official", [25])])
def test_a_long_text_is_read_in_segments_that_change_nothing(tiny_model, monkeypatch, scale, calls):
    """Its hidden states are not kept, and what depends on calls has them as they are."""
    model = FwPKMForCausalLM(type(tiny_model.config)(**tiny_model.config.to_dict() | {"fwpkm_write_scale": scale}))
    model.load_state_dict(tiny_model.state_dict())
    reader = text_model(model.double().eval())
    text = torch.randint(3, 200, (25,), generator=torch.Generator().manual_seed(3))
    expected = reader.read(text.tolist(), reader.new_cache(), last_only=False)[-1]
    lengths = []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    monkeypatch.setattr(room, "SEGMENT", 7)
    torch.testing.assert_close(reader.read(text.numpy(), reader.new_cache()), expected, rtol=1e-10, atol=1e-10)
    assert lengths == calls


@pytest.mark.parametrize(("scale", "calls"), [("consistent", [10, 10, 5]), ("official", [25])])
def test_losses_are_read_in_segments_only_where_cuts_do_not_matter(tiny_model, scale, calls):
    model = FwPKMForCausalLM(type(tiny_model.config)(**tiny_model.config.to_dict() | {"fwpkm_write_scale": scale}))
    reader, lengths = text_model(model.eval()), []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    document_losses(reader, np.arange(3, 28), reader.new_cache(), "on", 10)
    assert lengths == calls


def test_every_kind_passes_the_causality_check(model):
    text = torch.randint(3, 200, (50,), generator=torch.Generator().manual_seed(1)).numpy()
    assert check_causality(text_model(model), text, 200).passed


def test_modes_are_those_of_a_memory(model):
    reader = text_model(model)
    assert reader.has_memory is bool(getattr(model.config, "fwpkm_layers", None))
    cache = reader.new_cache()
    reader.write_waiting(cache)
    if reader.has_memory:
        reader.read([3, 4, 5], cache, "frozen")
        assert model.memory_mode == "frozen"
    else:
        with pytest.raises(AssertionError, match="no mode to choose"):
            reader.read([3, 4, 5], cache, "off")


def test_windows_of_other_models_are_known(model):
    expected = {"gpt2": None, "llama": None, "mistral": 2 * 7, "fwpkm": 2 * 7}
    assert text_model(model).attention_reach() == expected[model.config.model_type]


def test_reach_adds_up_over_layers(tiny_model):
    assert text_model(tiny_model).attention_reach() == 2 * 7
    assert text_model(OracleModel(10, window=None)).attention_reach() is None
