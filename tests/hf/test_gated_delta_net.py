"""The gated delta net in Transformers: Qwen3-Next's layer, in any cut of a text, with padding, beams and copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from megatron_fwpkm.hf import FwPKMForCausalLM
from megatron_fwpkm.hf.linear_attention_layer import DeltaNetLayer, FwPKMGatedDeltaNet
from megatron_fwpkm.hf.modeling_fwpkm import FwPKMDecoderLayer

from .builders import small_config, small_model, token_ids

SIZES = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 5,
    "linear_value_head_dim": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MIXED: dict[str, Any] = {"token_mixers": ["gdn", "swa"], "attention_windows": [None, 6], **SIZES}


def model_of(**changes: Any) -> FwPKMForCausalLM:
    """A gated delta net before attention, with a memory, in float64."""
    return small_model(**(MIXED | changes))


def test_it_is_the_layer_of_qwen3_next() -> None:
    config = Qwen3NextConfig(
        hidden_size=16, num_hidden_layers=1, layer_types=["linear_attention"], rms_norm_eps=1e-5, **SIZES
    )
    torch.manual_seed(0)
    theirs = Qwen3NextGatedDeltaNet(config, 0)
    ours = FwPKMGatedDeltaNet(small_config(**MIXED), 0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.5)
    ours.load_state_dict(theirs.state_dict())
    hidden = torch.randn(2, 150, 16)
    # Theirs computes in float32, whose rounding depends on the CPU.
    torch.testing.assert_close(ours(hidden, (hidden, hidden), None, None), theirs(hidden), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("cuts", [(), (1,), (3, 4, 40), tuple(range(1, 60)), (64,)])
def test_any_cut_of_a_text_is_one_call(cuts: tuple[int, ...]) -> None:
    model, ids = model_of(), token_ids(1, 90)
    cache, logits = model.new_cache(), []
    with torch.no_grad():
        for start, stop in zip((0, *cuts), (*cuts, 90), strict=True):
            logits.append(model(ids[:, start:stop], past_key_values=cache).logits)
        whole = model(ids, past_key_values=model.new_cache()).logits
    torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_no_trace(side: str) -> None:
    model = model_of()
    model.memory_mode = "frozen"
    lengths, ids, more = (20, 1, 13), token_ids(3, 20), token_ids(3, 9, seed=1)
    mask = torch.zeros(3, 20, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(20 - length, 20) if side == "left" else slice(length)] = 1
    with torch.no_grad():
        read = model(ids, attention_mask=mask, use_cache=True)
        whole = torch.cat([mask, torch.ones(3, 9, dtype=torch.long)], 1)
        after = model(more, attention_mask=whole, past_key_values=read.past_key_values).logits
        for row in range(3):
            alone = torch.cat([ids[row : row + 1, mask[row].bool()], more[row : row + 1]], 1)
            torch.testing.assert_close(after[row], model(alone).logits[0, -9:], rtol=1e-10, atol=1e-10)


def test_a_copy_goes_on_by_itself() -> None:
    model, ids = model_of(), token_ids(1, 30)
    with torch.no_grad():
        cache = model(ids[:, :20], use_cache=True).past_key_values
        twin = cache.clone()
        model(token_ids(1, 7, seed=5), past_key_values=cache)
        after = model(ids[:, 20:], past_key_values=twin).logits
        torch.testing.assert_close(after, model(ids).logits[:, 20:], rtol=1e-10, atol=1e-10)


def test_rows_are_repeated_chosen_and_reordered() -> None:
    model = model_of()
    model.memory_mode = "frozen"
    ids, more = token_ids(3, 12), token_ids(3, 4, seed=1)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 2, 4]))
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        order = [2, 0, 1]
        after = model(more, past_key_values=cache).logits
        whole = model(torch.cat([ids[order], more], 1)).logits[:, -4:]
    torch.testing.assert_close(after, whole, rtol=1e-10, atol=1e-10)
    assert isinstance(cache.layers[0], DeltaNetLayer)


def test_beams_choose_what_scores_best() -> None:
    """Scores of the beams are those of their texts read anew: every beam went on from its own state."""
    model, ids = model_of(), token_ids(1, 10)
    model.memory_mode = "frozen"
    found = model.generate(
        ids, num_beams=3, num_return_sequences=3, max_new_tokens=8, min_new_tokens=8, do_sample=False,
        return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    with torch.no_grad():
        logits = model(found.sequences[:, :-1]).logits[:, 9:].log_softmax(-1)
    scores = logits.gather(-1, found.sequences[:, 10:].unsqueeze(-1)).sum((1, 2))
    torch.testing.assert_close(found.sequences_scores.double(), scores, rtol=1e-5, atol=1e-5)


def test_gradients_pass_from_call_to_call() -> None:
    model, ids = model_of(fwpkm_layers=[]), token_ids(2, 24)
    weight = model.model.layers[0].linear_attn.in_proj_qkvz.weight
    gradients = []
    for cuts in ((24,), (7, 8, 24)):
        model.zero_grad()
        cache, start, total = model.new_cache(), 0, torch.zeros((), dtype=torch.float64)
        for stop in cuts:
            total = total + model(ids[:, start:stop], past_key_values=cache).logits.square().sum()
            start = stop
        total.backward()
        assert weight.grad is not None
        gradients.append(weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)


def test_a_new_model_begins_as_training_does() -> None:
    mixer = FwPKMForCausalLM(small_config(**MIXED)).model.layers[0].linear_attn
    rates = mixer.A_log.exp()
    assert (mixer.dt_bias == 1).all() and (mixer.norm.weight == 1).all()
    assert rates.min() >= 1 and rates.max() <= 16 and rates.unique().numel() == 4


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="linear_num_value_heads=4 is not divisible by linear_num_key_heads=3"):
        small_config(**MIXED | {"linear_num_key_heads": 3})
    with pytest.raises(ValueError, match="linear_value_head_dim=65536, linear_key_head_dim=65536 would need"):
        small_config(**MIXED | dict.fromkeys((*list(SIZES)[1:3], "linear_num_value_heads"), 2**16))
    small_config(linear_num_key_heads=3)  # no layer has it


def test_the_first_layer_of_the_authors_model(goldens: Callable[[str], Any]) -> None:
    """A memory, a gated delta net and an MLP with the weights of a file, which holds the states behind the layer."""
    golden = goldens("model_train")
    given = golden.meta["config"]
    config = small_config(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        fwpkm_layers=[0], token_mixers=["gdn", "fa"], attention_windows=None, fwpkm_num_subkeys=16, fwpkm_key_dim=16,
        fwpkm_value_dim=16, fwpkm_topk=4, fwpkm_chunk_size=32, rms_norm_eps=given["rms_norm_eps"],
        **{name: given[name] for name in SIZES if name in given},
    )  # fmt: skip
    layer = FwPKMDecoderLayer(config, 0)
    names = {
        "memory.query_norm": "fw_q_norm", "memory.query_proj": "fw_q_proj", "memory.value_norm": "fw_v_norm",
        "memory.value_proj": "fw_v_proj", "memory.gate_norm": "fw_out_gate_norm", "memory.gate_proj": "fw_out_gate",
        "memory.output_norm": "fw_out_norm", "memory.output_proj": "fw_out_proj",
    }  # fmt: skip
    weights: dict[str, Tensor] = {}
    for name in layer.state_dict():
        module, _, tensor = name.rpartition(".")
        theirs = {"memory.sub_keys": "fwpkm.keys", "memory.values": "fwpkm.values"}.get(
            name, f"{names.get(module, module)}.{tensor}"
        )
        value = golden[f"param.model.layers.0.{theirs}"]
        weights[name] = value.mean(0, keepdim=True) if module == "memory.gate_proj" else value
    weights["memory.sub_keys"] = weights["memory.sub_keys"].view(1, 2, 16, 8)
    layer.load_state_dict(weights)
    hidden = golden["param.model.embed_tokens.weight"][golden["in.input_ids"]]
    with torch.no_grad():
        found = layer(hidden, (hidden, hidden), shared=True)
    torch.testing.assert_close(found, golden["f32.layer0.hidden_states"], rtol=1e-5, atol=1e-5)
