"""The weight table: both directions, layouts by hand, and what it says of names it cannot place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.config.layer_kinds import LayerParts
from megatron_fwpkm.conversion import weight_mapping
from megatron_fwpkm.conversion.weight_mapping import model_rules
from megatron_fwpkm.conversion.weight_rules import GroupedHeads, WeightShapes

SHAPES = WeightShapes(num_query_groups=2, queries_per_group=3, head_dim=4, vocab_size=10, padded_vocab_size=16)


PLAN = [LayerParts("fwpkm", "fa", "swiglu")] * 2
RULES = model_rules(PLAN)


def megatron_tensors() -> dict[str, Tensor]:
    """A random tensor for every row of the table."""
    rows = {"embedding.word_embeddings": 16, "output_layer": 16, "linear_qkv": 2 * 5 * 4, "linear_fc1": 12}
    tensors = {}
    for name in (rule.megatron for rule in RULES):
        size = next((count for part, count in rows.items() if part in name), 7)
        tensors[name] = torch.randn(size) if name.endswith("bias") else torch.randn(size, 3)
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        tensors[name][10:] = 0
    return tensors


def megatron_to_hf(*arguments: Any) -> dict[str, Tensor]:
    """Everything at once."""
    parts = weight_mapping.megatron_to_hf(*arguments)
    return {name: tensor for part in parts for name, tensor in zip(part.names, part.read(), strict=True)}


def hf_names(tensors: dict[str, Tensor]) -> set[str]:
    return {name for rule in RULES for name in rule.hf if rule.megatron in tensors}


def test_there_and_back_again() -> None:
    tensors = megatron_tensors()
    out = megatron_to_hf(tensors, SHAPES, PLAN, hf_names(tensors))
    rules = {rule.megatron: rule for rule in RULES}
    for name, tensor in tensors.items():
        parts = tuple(out[part] for part in rules[name].hf)
        assert torch.equal(rules[name].transform.to_megatron(parts, SHAPES), tensor), name


def test_heads_are_taken_out_of_their_groups() -> None:
    """Two groups of three query heads: Megatron stacks q q q k v, q q q k v."""
    names = [f"{kind}{group}{head}" for group in range(2) for kind, heads in (("q", 3), ("k", 1), ("v", 1))
             for head in range(heads)]  # fmt: skip
    blocks = {name: torch.full((4, 3), float(index)) for index, name in enumerate(names)}
    q, k, v = GroupedHeads().to_hf(torch.cat(list(blocks.values())), SHAPES)
    assert torch.equal(q, torch.cat([blocks[f"q{group}{head}"] for group in range(2) for head in range(3)]))
    assert torch.equal(k, torch.cat([blocks["k00"], blocks["k10"]]))
    assert torch.equal(v, torch.cat([blocks["v00"], blocks["v10"]]))


def test_gates_follow_their_queries() -> None:
    """With an output gate Megatron stacks q q q g g g k v, Transformers q g q g q g."""
    gated = replace(SHAPES, output_gate=True)
    names = [f"{kind}{group}{head}" for group in range(2) for kind, heads in (("q", 3), ("g", 3), ("k", 1), ("v", 1))
             for head in range(heads)]  # fmt: skip
    blocks = {name: torch.full((4, 3), float(index)) for index, name in enumerate(names)}
    megatron = torch.cat(list(blocks.values()))
    q, k, v = GroupedHeads().to_hf(megatron, gated)
    order = [f"{kind}{group}{head}" for group in range(2) for head in range(3) for kind in "qg"]
    assert torch.equal(q, torch.cat([blocks[name] for name in order]))
    assert torch.equal(k, torch.cat([blocks["k00"], blocks["k10"]]))
    assert torch.equal(GroupedHeads().to_megatron((q, k, v), gated), megatron)


def test_halves_vocabulary_and_extra_state() -> None:
    tensors = megatron_tensors()
    extra = {"decoder.final_layernorm._extra_state": torch.zeros(1)}
    out = megatron_to_hf(tensors | extra, SHAPES, PLAN, hf_names(tensors))
    fc1 = tensors["decoder.layers.1.mlp.linear_fc1.weight"]
    assert torch.equal(out["model.layers.1.mlp.gate_proj.weight"], fc1[:6])
    assert torch.equal(out["model.layers.1.mlp.up_proj.weight"], fc1[6:])
    assert out["lm_head.weight"].shape == out["model.embed_tokens.weight"].shape == (10, 3)


def test_all_names_that_do_not_fit_are_listed() -> None:
    tensors = megatron_tensors()
    wanted = hf_names(tensors)
    surplus = tensors | {"decoder.layers.0.mixer.weight": torch.zeros(1), "rotary.inv_freq": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"tensors without a conversion rule: decoder.layers.0.mixer.weight, rotary.inv"
    ):
        megatron_to_hf(surplus, SHAPES, PLAN, wanted)
    fewer = {name: tensor for name, tensor in tensors.items() if "linear_fc1" not in name and "final" not in name}
    with pytest.raises(
        ValueError, match=r"missing Hugging Face tensors: .*gate_proj.bias.*model.norm.weight"
    ):
        megatron_to_hf(fewer, SHAPES, PLAN, wanted)
    with pytest.raises(ValueError, match="unexpected Hugging Face tensors: lm_head.weight"):
        megatron_to_hf(tensors, SHAPES, PLAN, wanted - {"lm_head.weight"})
    wrong = tensors | {"decoder.layers.1.self_attention.linear_qkv.weight": torch.zeros(39, 3)}
    with pytest.raises(ValueError, match="linear_qkv.weight: the tensor has 39 rows, expected 40"):
        megatron_to_hf(wrong, SHAPES, PLAN, wanted)
    with pytest.raises(ValueError, match="word_embeddings.weight: the tensor has 10 rows, expected 16"):
        megatron_to_hf(tensors | {"embedding.word_embeddings.weight": torch.zeros(10, 3)}, SHAPES, PLAN, wanted)


def test_a_tensor_of_a_kind_that_its_layer_does_not_have_fits_no_rule() -> None:
    tensors = megatron_tensors()
    plan = [PLAN[0], LayerParts(None, "fa", "swiglu")]
    with pytest.raises(ValueError, match="tensors without a conversion rule: decoder.layers.1.memory.gate_norm.weight"):
        megatron_to_hf(tensors, SHAPES, plan, hf_names(tensors))
