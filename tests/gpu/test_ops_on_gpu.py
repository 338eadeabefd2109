"""The memory on CUDA equals the dense float64 oracle on the CPU: reads, tables, gradients."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.ops import FastWeightOutput, FastWeightState, fast_weight_memory

pytestmark = pytest.mark.gpu


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "queries": draw(2, 75, 2, 16),
        "targets": draw(2, 75, 12),
        "gates": draw(2, 75).sigmoid(),
        "sub_keys": draw(2, 2, 16, 8) * 0.3,
        "values": draw(256, 12),
    }


def run(
    device: str, implementation: str, dtype: torch.dtype, **options: object
) -> tuple[FastWeightOutput, list[torch.Tensor]]:
    tensors = {name: x.to(device, dtype).requires_grad_() for name, x in inputs().items()}
    state = FastWeightState(tensors.pop("sub_keys"), tensors.pop("values"))
    output = fast_weight_memory(
        *tensors.values(), state, topk=4, chunk_size=16, lookahead=2, implementation=implementation, **options
    )
    weights = torch.cos(torch.arange(output.retrieved.numel(), device=device, dtype=dtype)).view_as(output.retrieved)
    wanted = [*tensors.values(), state.sub_keys, state.values]
    return output, list(torch.autograd.grad((output.retrieved * weights).sum(), wanted))


@pytest.mark.parametrize("implementation", ["sparse", "reference"])
@pytest.mark.parametrize("boundary", ["drop", "carry"])
@pytest.mark.parametrize("score", ["idw", "dot_product"])
def test_float64_on_cuda_equals_the_oracle(implementation, boundary, score):
    expected, expected_gradients = run("cpu", "reference", torch.float64, boundary=boundary, score=score)
    actual, gradients = run("cuda", implementation, torch.float64, boundary=boundary, score=score)
    torch.testing.assert_close(actual.slot_indices.cpu(), expected.slot_indices)
    torch.testing.assert_close(actual.retrieved.cpu(), expected.retrieved, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual.state.values.cpu(), expected.state.values, rtol=1e-12, atol=1e-12)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.cpu(), wanted, rtol=1e-11, atol=1e-11)


def test_tf32_around_it_changes_no_digit():
    exact, _ = run("cuda", "sparse", torch.float32)
    torch.set_float32_matmul_precision("high")
    try:
        allowed, _ = run("cuda", "sparse", torch.float32)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(exact.retrieved, allowed.retrieved)
