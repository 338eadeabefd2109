"""The differences between releases of megatron-core: what the other rooms get is the same under each of them."""

from __future__ import annotations

import importlib.metadata
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer import transformer_block
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_fwpkm.distributed import megatron_versions


def test_another_release_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.17.0")
    with pytest.warns(UserWarning, match=r"megatron-core 0\.17\.0 is installed but this was written for 0\.16\.1 and "):
        megatron_versions.warn_of_other_release("this")


def test_other_blocks_keep_megatrons_recompute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours runs the layers of the blocks that it was given, called as Megatron calls it."""
    inputs = {"hidden_states": torch.ones(2), "attention_mask": None}
    more: dict[str, Any] = {"extract_layer_indices": set(), "layer_offset": 0}
    ours, other = SimpleNamespace(), SimpleNamespace()

    def doubled(block: Any, hidden_states: torch.Tensor, attention_mask: None) -> torch.Tensor:
        assert block is ours
        return 2 * hidden_states

    if hasattr(transformer_block.TransformerBlock, "_checkpointed_forward"):
        megatron_versions.replace_recompute(ours, doubled)
        assert ours._checkpointed_forward(**inputs).tolist() == [2, 2]
        assert not vars(other)
        return
    monkeypatch.setattr(transformer_block, "checkpointed_forward", lambda block, **inputs: (block, inputs))
    for _ in range(2):  # replaced once
        megatron_versions.replace_recompute(ours, doubled)
    assert transformer_block.checkpointed_forward(ours, **inputs, **more).tolist() == [2, 2]
    assert transformer_block.checkpointed_forward(other, **inputs, **more) == (other, inputs | more)


def test_advice_to_megatrons_developers_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    megatron_versions.silence_notices()
    for name, text in megatron_versions._NOTICES.items():
        logging.getLogger(name).warning("%s", "a loss of nan")
        logging.getLogger(name).warning(f"{text} and more")
    assert {record.getMessage() for record in caplog.records} == {"a loss of nan"}


def test_no_module_is_for_cuda_graphs(recwarn: pytest.WarningsRecorder) -> None:
    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, **megatron_versions.no_cuda_graphs()
    )
    assert not [str(warning.message) for warning in recwarn if "scope" in str(warning.message)]
    assert next(value for name, value in vars(config).items() if name.startswith("cuda_graph_") and value == []) == []
