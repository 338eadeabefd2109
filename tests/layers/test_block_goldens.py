"""The memory block equals the authors' released code: outputs, losses, gradients and the tables it leaves."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.config import FwPKMConfig
from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
from megatron_fwpkm.models.transformer_config import FwPKMTransformerConfig
from megatron_fwpkm.ops import FastWeightState
from tests.training.double_precision import double_precision

_NAMES = {"query": "fw_q", "value": "fw_v", "output": "fw_out"}
# The reference vectors are float32: they are some roundings of the largest entry off. What is compared with them is
# computed in float64, so that it is the same on every CPU.
_TOLERANCE = 2e-6


def _block(golden) -> FastWeightMemoryLayer:
    theirs = golden.meta["config"]
    fwpkm = FwPKMConfig(
        layer_numbers=(1,),
        num_heads=theirs["fwpkm_heads"],
        num_subkeys=theirs["fwpkm_n_subkeys"],
        key_dim=theirs["fwpkm_k_dim"],
        value_dim=theirs["fwpkm_v_dim"],
        topk=theirs["fwpkm_topk"],
        chunk_size=theirs["fwpkm_update_chunk_size"],
        gate=theirs.get("fwpkm_out_fuse_gate", True),
        normalize_targets="fwpkm_compress_value" not in theirs,
    )
    config = FwPKMTransformerConfig(
        num_layers=1,
        hidden_size=theirs["hidden_size"],
        num_attention_heads=theirs["num_attention_heads"],
        layernorm_epsilon=theirs["rms_norm_eps"],
        use_cpu_initialization=True,
        params_dtype=torch.float64,
        fwpkm=fwpkm,
    )
    block = FastWeightMemoryLayer(config, layer_number=1)
    for name, parameter in block.named_parameters():
        parameter.data.copy_(_theirs(golden, "param.", name).view_as(parameter))
    keys = golden["param.fwpkm.keys"].double().view_as(block.sub_keys)
    block.load_fast_weights(FastWeightState(keys, golden["param.fwpkm.values"].double()))
    return block


def _theirs(golden, prefix: str, name: str) -> torch.Tensor:
    """A tensor of the reference under the name it has there; their 8 gate outputs are averaged, ours is the average."""
    room, _, kind = name.partition(".")
    part, _, module = room.partition("_")
    if part == "gate" and module == "proj":
        rows = golden[f"{prefix}fw_out_gate.{kind}"]
        # The gradient of the mean row is the sum of the gradients of the rows.
        return rows.sum(0) if "grad" in prefix else rows.mean(0)
    if part == "gate":
        return golden[f"{prefix}fw_out_gate_norm.{kind}"]
    return golden[f"{prefix}{_NAMES[part]}_{module}.{kind}"]


def _assert_equal(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    scale = theirs.abs().max().clamp(min=1)
    difference = (ours.detach() - theirs.view_as(ours)).abs().max()
    assert difference <= _TOLERANCE * scale, f"{name}: {difference:.2e} at scale {scale:.2e}"


@pytest.mark.parametrize("name", ["block_default", "block_nogate_rawvalue"])
def test_block_equals_the_reference(goldens, name: str) -> None:
    golden = goldens(name)
    with double_precision():
        _check(golden, has_gate=name == "block_default")


def _check(golden, has_gate: bool) -> None:
    block = _block(golden)
    hidden = golden["in.hidden"].double().transpose(0, 1).clone().requires_grad_()
    out = block(hidden, golden["in.mask"])
    (out.transpose(0, 1) * golden["in.W"].double()).sum().backward()

    _assert_equal("output", out.transpose(0, 1), golden["f32.hidden_out"])
    _assert_equal("grad of hidden", hidden.grad.transpose(0, 1), golden["f32.grad.hidden"])
    for parameter_name, parameter in block.named_parameters():
        _assert_equal(f"grad of {parameter_name}", parameter.grad, _theirs(golden, "f32.grad.", parameter_name))
    state = block.fast_weights()
    _assert_equal("sub_keys", state.sub_keys, golden["f32.final.fwpkm.keys"])
    _assert_equal("values", state.values, golden["f32.final.fwpkm.values"])
    assert out.dtype == state.values.dtype == torch.float64
    statistics = block.statistics()
    assert statistics.memorization_loss == pytest.approx(golden["f32.mem_losses"].mean().item(), rel=1e-5)
    if has_gate:
        assert statistics.gate_mean == pytest.approx(golden["f32.gates"].mean().item(), rel=1e-6)
