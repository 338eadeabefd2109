"""The block against the reference vectors, and what dtype conversions and saving do to the tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.hf import FwPKMForCausalLM
from megatron_fwpkm.hf.memory_block import FastWeightProductKeyMemory
from megatron_fwpkm.ops import MemoryOptions

from .builders import small_model, token_ids

PROJECTIONS = {
    "fw_q_norm": "query_norm",
    "fw_q_proj": "query_proj",
    "fw_v_norm": "value_norm",
    "fw_v_proj": "value_proj",
    "fw_out_gate_norm": "gate_norm",
    "fw_out_norm": "output_norm",
    "fw_out_proj": "output_proj",
}


def block_from_golden(golden: Any) -> FastWeightProductKeyMemory:
    config = golden.meta["config"]
    keys, values = golden["param.fwpkm.keys"], golden["param.fwpkm.values"]
    options = MemoryOptions(topk=config["fwpkm_topk"], chunk_size=config["fwpkm_update_chunk_size"])
    gate, z_scored = config.get("fwpkm_out_fuse_gate", True), config.get("fwpkm_compress_value", "zscore") is not None
    block = FastWeightProductKeyMemory(
        config["hidden_size"], config["fwpkm_heads"], config["fwpkm_n_subkeys"], config["fwpkm_k_dim"],
        values.shape[1], options, gate=gate, normalize_targets=z_scored,
    )  # fmt: skip
    state = {"sub_keys": keys.view_as(block.sub_keys), "values": values}
    for theirs, ours in PROJECTIONS.items():
        for kind in ("weight", "bias"):
            if f"param.{theirs}.{kind}" in golden.tensors and f"{ours}.{kind}" in block.state_dict():
                state[f"{ours}.{kind}"] = golden[f"param.{theirs}.{kind}"]
    if gate:
        # Their gate is the mean of eight outputs, which is one output with the mean of the rows.
        state["gate_proj.weight"] = golden["param.fw_out_gate.weight"].mean(0, keepdim=True)
        state["gate_proj.bias"] = golden["param.fw_out_gate.bias"].mean(0, keepdim=True)
    block.load_state_dict(state)
    return block


@pytest.mark.parametrize("name", ["block_default", "block_nogate_rawvalue"])
def test_block_equals_the_released_implementation(goldens: Callable[[str], Any], name: str) -> None:
    golden = goldens(name)
    # In float64, which is the same on every CPU; the reference is some roundings off.
    block = block_from_golden(golden).double()
    hidden = golden["in.hidden"].double().requires_grad_()
    out = block(hidden, shared=True, mask=golden["in.mask"])
    torch.testing.assert_close(out, golden["f32.hidden_out"].double(), rtol=1e-5, atol=2e-6)
    (out * golden["in.W"].double()).sum().backward()
    torch.testing.assert_close(hidden.grad, golden["f32.grad.hidden"].double(), rtol=1e-4, atol=2e-5)


def tables(model: FwPKMForCausalLM) -> tuple[Tensor, Tensor]:
    memory = model.model.layers[1].memory
    return memory.sub_keys, memory.values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_stay_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32)
    before = [table.clone() for table in tables(model)]
    model.to(dtype)
    assert model.lm_head.weight.dtype == dtype
    for table, original in zip(tables(model), before, strict=True):
        assert table.dtype == torch.float32 and torch.equal(table, original)
    model.save_pretrained(tmp_path)
    loaded = FwPKMForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.lm_head.weight.dtype == dtype
    for table, original in zip(tables(loaded), before, strict=True):
        assert table.dtype == torch.float32 and torch.equal(table, original)
    ids = token_ids(1, 30)
    assert loaded(ids).logits.dtype == dtype and loaded(ids).logits.isfinite().all()
    assert tables(model.double())[1].dtype == torch.float64


def test_save_and_load(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32, tie_word_embeddings=False)
    with torch.no_grad():
        for table in tables(model):
            table.normal_()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["fwpkm_layers"] == [1]
    loaded = FwPKMForCausalLM.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {n: t.shape for n, t in state.items()}
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = FwPKMForCausalLM(small_model().config)
    sub_keys, values = tables(model)
    assert 0.9 * 8**-0.5 < sub_keys.abs().max() <= 8**-0.5
    assert values.std() == pytest.approx(12**-0.5, rel=0.1)
    assert model.model.norm.weight.eq(0).all() and model.model.layers[1].memory.query_norm.weight.eq(0).all()
    assert model.lm_head.weight is model.model.embed_tokens.weight
