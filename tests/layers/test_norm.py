"""RMSNorm against its formula, in float64, and in the dtypes of training."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.layers.norm import MegatronRMSNorm
from megatron_fwpkm.models.transformer_config import transformer_config
from tests.layers.megatron import tiny


def _norm(dtype: torch.dtype = torch.float32, **options: bool) -> MegatronRMSNorm:
    norm = MegatronRMSNorm(transformer_config(tiny()), 6, eps=1e-3, **options)
    norm.weight.data.copy_(torch.linspace(-0.5, 0.5, 6))
    return norm.to(dtype)


def test_it_is_the_formula() -> None:
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    norm = _norm(torch.float64)
    expected = x * (x.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * (1 + norm.weight)
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(norm, (x.requires_grad_(),))


def test_it_starts_as_plain_normalisation() -> None:
    norm = MegatronRMSNorm(transformer_config(tiny()), 6)
    assert torch.equal(norm.weight, torch.zeros(6))


def test_bfloat16_is_normalised_in_float32() -> None:
    x = torch.randn(64, 6).bfloat16()
    out = _norm(torch.bfloat16)(x)
    exact = _norm(torch.float64)(x.double())
    assert out.dtype == torch.bfloat16
    # One rounding of the result, and one of the weight where it is stored.
    assert (out.double() / exact - 1).abs().max() < 2 * 2**-8


@pytest.mark.parametrize(("on_shards", "expected"), [(True, True), (False, False)])
def test_only_norms_of_sequence_shards_are_summed_over_ranks(on_shards: bool, expected: bool) -> None:
    config = transformer_config(tiny())
    config.sequence_parallel = True
    assert MegatronRMSNorm(config, 6, on_sequence_shards=on_shards).weight.sequence_parallel is expected
    config.sequence_parallel = False
    assert MegatronRMSNorm(config, 6, on_sequence_shards=on_shards).weight.sequence_parallel is False
