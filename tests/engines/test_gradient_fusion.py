"""--gradient-accumulation-fusion: Megatron's linear layers through a pretended kernel of Apex, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.validation import validate
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from megatron_fwpkm.libraries.probes import GRADIENT_KERNEL
from tests.engines.test_engine import BASE, VOCABULARY, batches, change
from tests.libraries.pretended import pretended
from tests.spawned_ranks import run_distributed

PLAIN = change(BASE, "model", hidden_dropout=0.0, attention_dropout=0.0)
LINEARS = ("linear_qkv.weight", "linear_proj.weight", "linear_fc1.weight", "linear_fc2.weight", "output_layer.weight")
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def gradients(config: PretrainConfig, *names: str, rounded: bool = True) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Gradients of two micro-batches by the name of the weight, and the names that the kernel added to."""
    with pretended(*names, rounded=rounded) as kernel, megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        for chunk in engine.chunks:
            chunk.zero_grad_buffer()
        engine._run_micro_batches(batches(0), 2, forward_only=False)
        weights = {name: weight for chunk in engine.chunks for name, weight in chunk.module.named_parameters()}
        places = {weight.main_grad.data_ptr(): name for name, weight in weights.items()}
        fused = {places[buffer.data_ptr()] for buffer in kernel.buffers}
        assert len(kernel.buffers) == 2 * len(fused), "once for each micro-batch"
        return {name: weight.main_grad.clone() for name, weight in weights.items()}, fused


def assert_same(config: PretrainConfig) -> set[str]:
    """The gradients with the kernel are bitwise those without; returns what the kernel added to."""
    plain, none = gradients(config)
    fused, names = gradients(config, GRADIENT_KERNEL)
    assert not none and plain.keys() == fused.keys()
    tied = "embedding.word_embeddings.weight"
    for name, gradient in plain.items():
        assert gradient.abs().sum() > 0, name
        if name.endswith(tied) and name in names:  # its two parts are added in another order
            torch.testing.assert_close(fused[name], gradient, rtol=2e-2, atol=1e-4)
        else:
            assert torch.equal(fused[name], gradient), name
    return names


@pytest.mark.parametrize(
    ("training", "parallel"),
    [
        pytest.param({}, {}, marks=pytest.mark.slow),
        pytest.param({"bf16": True}, {}, marks=pytest.mark.slow),
        pytest.param({"bf16": True}, {"grad_reduce_in_bf16": True}, marks=pytest.mark.slow),
        ({"bf16": True, **FULL}, {"overlap_grad_reduce": True}),
        pytest.param({}, {"use_distributed_optimizer": True, "overlap_grad_reduce": True}, marks=pytest.mark.slow),
        pytest.param({"cpu_offloading_num_layers": 1}, {}, marks=pytest.mark.slow),
    ],
)
def test_weight_gradients_are_those_without_the_kernel(training: dict[str, Any], parallel: dict[str, Any]) -> None:
    config = change(change(PLAIN, "training", **training), "parallel", **parallel)
    names = assert_same(change(config, "model", untie_embeddings_and_output_weights=True))
    assert all(name.endswith(LINEARS) for name in names) and len(names) == 4 * config.model.num_layers + 1
    assert not any(".memory." in name for name in names)


def test_a_tied_embedding_has_the_gradients_of_both_its_uses() -> None:
    assert any(name.endswith("word_embeddings.weight") for name in assert_same(PLAIN))


def test_the_kernel_does_not_round_to_bfloat16() -> None:
    config = change(change(PLAIN, "training", bf16=True), "model", untie_embeddings_and_output_weights=True)
    plain, _ = gradients(config)
    fused, names = gradients(config, GRADIENT_KERNEL, rounded=False)
    for name in names:
        assert not torch.equal(fused[name], plain[name])
        torch.testing.assert_close(fused[name], plain[name], rtol=2**-6, atol=5e-4)


@pytest.mark.parametrize(
    ("training", "parallel"),
    [
        ({"gradient_accumulation_fusion": "off"}, {}),
        # With the kernel Megatron would fail: the weights that backward gets have no mark of what was added.
        ({"cpu_offloading_num_layers": 1}, {"overlap_grad_reduce": True}),
    ],
)
def test_the_kernel_is_not_used(training: dict[str, Any], parallel: dict[str, Any]) -> None:
    config = change(change(PLAIN, "training", **training), "parallel", **parallel)
    assert gradients(config, GRADIENT_KERNEL)[1] == set()


def test_on_is_refused_where_megatron_would_fail() -> None:
    config = change(PLAIN, "training", gradient_accumulation_fusion="on", cpu_offloading_num_layers=1)
    config = change(config, "data", data_path=("corpus",))
    with pytest.raises(ValueError, match="fusion on: --overlap-grad-reduce does not notice it in the layers of --cpu"):
        validate(change(config, "parallel", overlap_grad_reduce=True))
    validate(config)


def on_two_ranks(rank: int, world_size: int, config: PretrainConfig) -> int:
    return len(assert_same(config))


@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.slow
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_tensor_parallel_linears(sequence_parallel: bool) -> None:
    config = change(PLAIN, "parallel", tensor_model_parallel_size=2, sequence_parallel=sequence_parallel)
    config = change(change(config, "training", bf16=True), "model", untie_embeddings_and_output_weights=True)
    config = change(config, "model", num_query_groups=2)
    assert run_distributed(on_two_ranks, 2, config, timeout=240) == [9, 9]
