"""Layers with a static product key memory in the place of their MLP, and fields that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_fwpkm.hf import FwPKMForCausalLM
from tests.hf.builders import small_config, small_model, token_ids

PKM: dict[str, Any] = {
    "mlps": ["pkm", "swiglu"], "pkm_num_heads": 2, "pkm_num_subkeys": 6, "pkm_key_dim": 8, "pkm_value_dim": 12,
    "pkm_topk": 3,
}  # fmt: skip


def test_any_cut_of_a_text_gives_what_one_call_gives() -> None:
    model, ids = small_model(**PKM), token_ids(1, 29)
    whole = model(ids, use_cache=True).logits
    for length in (1, 5, 13):
        cache, pieces = model.new_cache(), []
        for piece in ids.split(length, 1):
            pieces.append(model(piece, past_key_values=cache).logits)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-10)


def test_a_model_that_is_not_loaded_begins_with_a_memory_that_can_be_trained() -> None:
    model = FwPKMForCausalLM(small_config(**PKM))
    memory = model.model.layers[0].mlp
    assert memory.values.std().item() == pytest.approx(12**-0.5, rel=0.15)
    assert 0 < memory.sub_keys.abs().max() <= 8**-0.5
    ids = token_ids(1, 20)
    model.train()(ids, labels=ids).loss.backward()
    touched = memory.values.grad.abs().sum(1) > 0
    assert touched.any() and memory.sub_keys.grad.abs().sum() > 0


def test_it_is_saved_and_loaded(tmp_path: Any) -> None:
    model, ids = small_model(dtype=torch.float64, **PKM), token_ids(1, 9)
    model.save_pretrained(tmp_path)
    loaded = FwPKMForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.mlps == PKM["mlps"] and loaded.config.pkm_topk == 3
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    # Weights in a file begin anywhere, which changes how a matrix product is rounded.
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mlps": ["pkm"]}, "mlps has length 1, but must have one entry for each layer .num_hidden_layers=2"),
        ({"mlps": "pkm"}, "mlps='pkm' must be a list"),
        ({"pkm_key_dim": 7}, "pkm_key_dim=7 must be even"),
        ({"pkm_topk": 7}, "pkm_topk=7 must be at most pkm_num_subkeys=6"),
        ({"pkm_num_heads": 0}, "pkm_num_heads=0 must be an integer of at least 1"),
        ({"pkm_num_subkeys": 10**7}, "pkm_num_subkeys=10000000, pkm_value_dim=12 would need"),
        ({"pkm_heads": 2}, "pkm_heads is not a field of this configuration"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**PKM | fields)


def test_a_kind_that_is_not_known_is_refused_by_the_model() -> None:
    with pytest.raises(ValueError, match="mlps contains 'moe', which is not supported; choose one of: swiglu, pkm"):
        FwPKMForCausalLM(small_config(mlps=["swiglu", "moe"]))
