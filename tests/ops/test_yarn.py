"""YaRN: Transformers' frequencies and amplitude in float64, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedConfig, modeling_rope_utils

from megatron_fwpkm.ops.yarn import Yarn

CASES = [
    (Yarn(4.0, 8192), 64, 10_000.0),
    (Yarn(16.0, 8192), 16, 10_000.0),
    (Yarn(64.0, 8192), 128, 500_000.0),
    (Yarn(4.0, 4096, beta_fast=16.0, beta_slow=2.0), 64, 10_000.0),
    (Yarn(1.0, 4096), 64, 10_000.0),
    (Yarn(8.0, 16), 8, 10_000.0),  # no pair turns so often as beta_fast says
]


def plain(width: int, base: float) -> torch.Tensor:
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)


@pytest.mark.parametrize(("yarn", "width", "base"), CASES)
def test_it_is_that_of_transformers(yarn: Yarn, width: int, base: float, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {
        "rope_type": "yarn", "rope_theta": base, "factor": yarn.factor, "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow, "original_max_position_embeddings": yarn.original_length,
    }  # fmt: skip
    config = PreTrainedConfig(head_dim=width, hidden_size=width, num_attention_heads=1, max_position_embeddings=1 << 20)
    config.rope_parameters = parameters
    monkeypatch.setattr(torch, "float", torch.float64)  # what Transformers computes in
    monkeypatch.setattr(torch, "float32", torch.float64)
    theirs, amplitude = modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    torch.testing.assert_close(yarn.frequencies(plain(width, base), base), theirs, rtol=1e-14, atol=0)
    assert yarn.amplitude == pytest.approx(amplitude, rel=1e-15)


def test_fast_pairs_are_kept_and_slow_ones_are_divided() -> None:
    frequencies, stretched = plain(64, 10_000.0), Yarn(16.0, 8192).frequencies(plain(64, 10_000.0), 10_000.0)
    turns = 8192 * frequencies / (2 * torch.pi)
    assert torch.equal(stretched[turns > 40], frequencies[turns > 40])
    assert torch.equal(stretched[turns < 0.7], frequencies[turns < 0.7] / 16)
    between = (stretched / frequencies)[(turns < 32) & (turns > 1)]
    assert ((between < 1) & (between > 1 / 16)).all() and (between.diff() < 0).all()
