"""Rotary positions in every spelling of Transformers: written in both, read from each, refused where they disagree."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_fwpkm.hf import FwPKMHFConfig
from megatron_fwpkm.hf.attention import rotary_angles
from megatron_fwpkm.hf.attention_fields import yarn_scaling
from megatron_fwpkm.hf.rope_fields import ROPE_FIELDS, SPELLINGS

from .builders import small_config

LLAMA = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "beta_fast": 32.0, "beta_slow": 1.0
}  # fmt: skip
VARIANTS: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"rope_theta": 500000.0}, None),
    ({"partial_rotary_factor": 1.0}, None),
    ({"rope_theta": 500000.0, "rope_scaling_factor": 8.0}, LLAMA),
    ({"yarn_factor": 4.0, "yarn_original_length": 256}, YARN),
    ({"yarn_factor": 4.0, "training_length": 256}, YARN),
    ({"yarn_factor": 4, "training_length": 256, "yarn_beta_fast": 16.0}, YARN | {"beta_fast": 16.0}),
]


def fields(config: FwPKMHFConfig) -> dict[str, Any]:
    """What rotary positions are computed from."""
    found = {name: getattr(config, name) for name in ROPE_FIELDS if name != "yarn_original_length"}
    return found | {"yarn": yarn_scaling(config)}


@pytest.mark.parametrize(("given", "scaling"), VARIANTS)
def test_both_spellings_are_written_and_each_is_read(
    given: dict[str, Any], scaling: dict[str, Any] | None, tmp_path: Path
) -> None:
    config = small_config(**given)
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    theta, share = config.rope_theta, config.partial_rotary_factor
    assert content["rope_theta"] == theta and content["rope_scaling"] == scaling == config.rope_scaling
    parameters = {**(scaling or {"rope_type": "default"}), "rope_theta": theta, "partial_rotary_factor": share}
    assert content["rope_parameters"] == parameters == config.rope_parameters
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = FwPKMHFConfig.from_pretrained(tmp_path)
    assert fields(again) == fields(config) and again.rope_parameters == config.rope_parameters
    bare = {name: value for name, value in content.items() if name not in (*ROPE_FIELDS, *SPELLINGS)}
    old = {"rope_theta": theta, "partial_rotary_factor": share, "rope_scaling": scaling}
    for spelled in (old, {"rope_parameters": parameters}, old | {"rope_parameters": parameters}):
        assert fields(FwPKMHFConfig.from_dict(bare | spelled)) == fields(config)
        assert fields(FwPKMHFConfig(**bare | spelled)) == fields(config)
        (tmp_path / "config.json").write_text(json.dumps(bare | spelled))
        assert fields(FwPKMHFConfig.from_pretrained(tmp_path)) == fields(config)
    changed = small_config()
    changed.rope_parameters = parameters
    assert fields(changed) == fields(config)
    if scaling is not None:
        changed = small_config(rope_theta=theta)
        changed.rope_scaling = scaling
        assert fields(changed) == fields(config)


def test_keywords_go_before_the_file(tmp_path: Path) -> None:
    small_config(training_length=256).save_pretrained(tmp_path)
    for keywords in ({"yarn_factor": 4.0}, {"rope_scaling": YARN}, {"rope_parameters": YARN}):
        config = FwPKMHFConfig.from_pretrained(tmp_path, **keywords)
        assert config.yarn_factor == 4.0 and config.rope_parameters["rope_type"] == "yarn", keywords
        assert config.rope_parameters["rope_theta"] == small_config().rope_theta


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta=10000.0 and"),
        ({"yarn_factor": 4.0, "rope_scaling": {"rope_type": "default"}}, "yarn_factor=4.0 and rope_scaling=.* disag"),
        ({"yarn_factor": None, "rope_scaling": YARN}, "yarn_factor=None and rope_scaling={.*} disagree about"),
        (
            {"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 8.0}},
            r"yarn_factor=4.0 \(from rope_scaling\) and rope_parameters={.*} disagree .* change one of them",
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "the rope_type 'linear', which is not supported"),
        ({"rope_scaling": LLAMA | {"low_freq_factor": 2.0}}, "contains low_freq_factor=2.0, but only 1.0 is supported"),
        ({"rope_parameters": YARN | {"mscale": 2.0}}, "contains mscale=2.0, but it is not supported; remove it"),
        ({"rope_parameters": YARN | {"attention_factor": 2.0}}, "contains attention_factor=2.0, but only 1.13"),
        ({"rope_scaling": {"type": "llama3"}}, "has no factor, which rope_type 'llama3' needs; give it"),
        ({"rope_parameters": ["yarn"]}, "must be a dictionary, or None"),
    ],
)
def test_what_disagrees_or_is_not_there_is_refused(given: dict[str, Any], message: str) -> None:
    bare = {name: value for name, value in small_config().to_dict().items() if name not in (*ROPE_FIELDS, *SPELLINGS)}
    with pytest.raises(ValueError, match=message):
        FwPKMHFConfig.from_dict(bare | given)
    if "disagree" not in message and "rope_theta" not in message:
        with pytest.raises(ValueError, match=message):
            FwPKMHFConfig(**bare | given)


@pytest.mark.parametrize(("given", "scaling"), VARIANTS)
def test_transformers_turns_by_the_same_angles(given: dict[str, Any], scaling: dict[str, Any] | None) -> None:
    """A tool that reads `rope_parameters` computes with them what this model computes."""
    config = small_config(**given | {"partial_rotary_factor": 1.0, "head_dim": 64})
    theirs = LlamaConfig(
        hidden_size=64, num_attention_heads=1, head_dim=64, max_position_embeddings=1 << 20,
        rope_parameters=config.rope_parameters,
    )  # fmt: skip
    positions = torch.arange(600).unsqueeze(0)
    cos, sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1), positions)
    ours = rotary_angles(positions, 64, config.rope_theta, config.rope_scaling_factor, yarn_scaling(config))
    for one, other in zip(ours, (cos, sin), strict=True):
        torch.testing.assert_close(one[:, 0], other, rtol=0, atol=2e-4)
