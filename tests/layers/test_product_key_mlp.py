"""The static memory as a Megatron module: its function, its size, and where the gradient of its values goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from megatron_fwpkm.config import PKMConfig, PretrainConfig
from megatron_fwpkm.config.kind_rows.pkm_kind import PKM
from megatron_fwpkm.config.parameter_counts import kind_parameters
from megatron_fwpkm.ops.initialization import sub_key_bound, value_deviation
from megatron_fwpkm.ops.product_key_memory.reference import reference_slots, reference_sum
from megatron_fwpkm.training.memory_estimate import activation_bytes
from tests.layers.megatron import VOCABULARY, batch, initialize, tiny
from tests.training.test_memory_estimate import BASE as MEASURED
from tests.training.test_memory_estimate import keep


def build(config: PretrainConfig):
    initialize()
    from megatron_fwpkm.models.builder import build_model

    return build_model(config, VOCABULARY)


def test_it_computes_what_its_equations_say() -> None:
    layer = build(tiny(pkm={"layer_numbers": (1,)})).decoder.layers[0].mlp
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    x = torch.randn(5, 2, 32, requires_grad=True)
    output, nothing = layer(x)
    queries = F.linear(x, layer.query_proj.weight, layer.query_proj.bias)
    queries = F.rms_norm(queries, queries.shape[-1:], 1 + layer.query_norm.weight, 1e-5).view(10, 2, 8)
    read = reference_sum(layer.values, *reference_slots(queries, layer.sub_keys, 4)).view(5, 2, 16)
    gates = F.silu(F.linear(x, layer.gate_proj.weight, layer.gate_proj.bias))
    expected = F.linear(read * gates, layer.output_proj.weight, layer.output_proj.bias)
    assert nothing is None
    torch.testing.assert_close(output, expected)
    weights = torch.randn(expected.shape)
    wanted = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((output * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_it_has_as_many_weights_as_its_row_says_and_they_begin_as_documented() -> None:
    config = tiny(pkm={"layer_numbers": (1,), "num_subkeys": 40})
    layer = build(config).decoder.layers[0].mlp
    norm = config.model.hidden_size
    assert sum(weight.numel() for weight in layer.parameters()) == kind_parameters(config, PKM).total - norm
    bound = sub_key_bound(8)
    assert layer.sub_keys.abs().max() <= bound and layer.sub_keys.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert layer.values.std().item() == pytest.approx(value_deviation(16), rel=0.02)


def test_two_layers_and_two_seeds_begin_differently() -> None:
    one = build(tiny(pkm={"layer_numbers": (1, 2,)}))
    other = build(tiny(training={"seed": 5}, pkm={"layer_numbers": (1, 2)}))
    first, second = (layer.mlp.values for layer in one.decoder.layers[:2])
    assert not torch.equal(first, second) and not torch.equal(first, other.decoder.layers[0].mlp.values)


@pytest.mark.parametrize("reduce_in_bf16", [False, True])
def test_gradients_of_values_are_added_to_megatrons_buffer(reduce_in_bf16: bool) -> None:
    """Over two micro-batches, as `values.grad` adds them up, and without a tensor of the table's size."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from megatron_fwpkm.models.builder import memory_layers

    config = tiny(bf16=reduce_in_bf16, reset="step", pkm={"layer_numbers": (2,)})
    model = build(config)
    model = model.bfloat16() if reduce_in_bf16 else model
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=not reduce_in_bf16, overlap_grad_reduce=True)
    wrapped = DistributedDataParallel(model.config, settings, model)
    values = model.decoder.layers[1].mlp.values
    expected = torch.zeros(values.shape)

    def loss(seed: int) -> torch.Tensor:
        tokens, positions, labels = batch(seed=seed)
        return model(tokens, positions, None, labels=labels).mean()

    for seed in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(values, "main_grad")
            expected += torch.autograd.grad(loss(seed), values)[0].float()
        for memory in memory_layers(model):
            memory.reset()
    wrapped.zero_grad_buffer()
    with wrapped.no_sync():
        loss(1).backward()
    for memory in memory_layers(model):
        memory.reset()
    loss(2).backward()
    assert values.grad is None and values.main_grad.abs().max() > 0
    close = {"rtol": 0.05, "atol": 2e-4} if reduce_in_bf16 else {}
    torch.testing.assert_close(values.main_grad.float(), expected, **close)
    untouched = (expected == 0).all(1)
    assert not values.main_grad[untouched].any()


def test_recomputing_the_mlp_changes_nothing() -> None:
    results = []
    for training in ({}, {"recompute_granularity": "selective", "recompute_modules": ("mlp",)}):
        model = build(tiny(training=training, pkm={"layer_numbers": (1, 3)}))
        loss = model(*batch()[:2], None, labels=batch()[2]).mean()
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("sizes", [{"num_heads": 4, "topk": 16, "key_dim": 8}, {"value_dim": 192, "key_dim": 32}])
def test_what_it_keeps_for_its_backward_pass_is_near_the_estimate(bf16: bool, sizes: dict[str, int]) -> None:
    initialize()
    values = {"layer_numbers": (1, 2), "num_heads": 1, "num_subkeys": 16, "value_dim": 16, "topk": 4, **sizes}
    config = replace(MEASURED, training=replace(MEASURED.training, bf16=bf16))
    static, dense = replace(config, pkm=PKMConfig(**values)), config
    more = [activation_bytes(one, 512, 0) for one in (static, dense)]
    kept = [sum(tensor.untyped_storage().nbytes() for tensor in keep(one)) for one in (static, dense)]
    scale = 512 * 2 * PKM.activation_bytes(static).on_rank(1)
    assert abs((kept[0] - kept[1]) - (more[0] - more[1])) < 0.15 * scale
