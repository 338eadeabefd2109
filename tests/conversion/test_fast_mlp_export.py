"""A fast-weight MLP in Transformers: the export computes what Megatron computes, in any cut, and knows its fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import FwMLPConfig, PretrainConfig
from megatron_fwpkm.conversion import export as export_module
from megatron_fwpkm.conversion import exported_config
from megatron_fwpkm.conversion import verify as verify_module
from megatron_fwpkm.conversion.export import export, hf_model
from megatron_fwpkm.conversion.verify import verify
from megatron_fwpkm.hf import FwPKMForCausalLM, FwPKMHFConfig
from tests.checkpoint.contents import contents_of
from tests.layers.megatron import initialize, tiny
from tests.quick_cases import product_cases

VOCABULARY = 60


def configured(**changes: Any) -> PretrainConfig:
    fwmlp = {"layer_numbers": (1, 3), "inner_lr": 0.5, "gate_writes": True, "lookahead": 2, **changes}
    return tiny(layer_numbers=(2,) if 2 not in fwmlp["layer_numbers"] else (), fwmlp=fwmlp)


@pytest.mark.parametrize(
    ("changes", "memory"),
    product_cases(
        [{}, {"gate": False, "gate_writes": False, "boundary": "carry"}],
        ["initial", "trained"],
        quick=lambda changes, memory: bool(changes) == (memory == "initial"),
    ),
)
def test_an_export_is_verified(
    changes: dict[str, Any], memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialize()
    found = contents_of(configured(**changes), VOCABULARY, 64)
    for module in (export_module, verify_module):
        monkeypatch.setattr(module, "checkpoint_contents", lambda path, replica=0: found)
    export("checkpoint", tmp_path / "hf", tokenizer=False, fast_weights=memory)
    checks = verify("checkpoint", tmp_path / "hf", lengths=[17, 48])
    assert all(check.passed for check in checks), [check.row() for check in checks]
    model = FwPKMForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.config.fwmlp_layers == [0, 2] and model.config.memory_layers == [0, 1, 2]
    trained = found.fast[1].tables["up_weight"]
    assert torch.equal(model.model.layers[0].memory.up_weight, trained) == (memory == "trained")


def model() -> FwPKMForCausalLM:
    initialize()
    return hf_model(contents_of(configured(layer_numbers=(2,)), VOCABULARY, 64)).double()


def test_padding_forks_and_modes() -> None:
    made, ids = model(), torch.randint(VOCABULARY, (1, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = made(ids, cache=made.new_cache()).logits
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
        mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)], 1)
        torch.testing.assert_close(made(padded, attention_mask=mask, cache=made.new_cache()).logits[:, 3:], whole)
        cache = made.new_cache()
        made(ids[:, :30], cache=cache)
        fork = cache.clone()
        first = made(ids[:, 30:], cache=cache).logits
        torch.testing.assert_close(first, whole[:, 30:], rtol=0, atol=1e-12)
        torch.testing.assert_close(made(ids[:, 30:], cache=fork).logits, first, rtol=0, atol=0)
        made.memory_mode = "frozen"
        before = fork.memory[1].state
        made(ids, cache=fork)
        assert fork.memory[1].state is before
        fork.end_text()
        fork.reset_memory()
        assert fork.memory[1].state.weights == made.model.layers[1].memory.initial().weights


def test_half_precision_leaves_the_fast_weights_alone() -> None:
    memory = model().float().bfloat16().model.layers[1].memory
    assert memory.query_proj.weight.dtype == torch.bfloat16
    assert {weight.dtype for weight in memory.initial().weights} == {torch.float32}


@pytest.mark.parametrize(("message", "fields"), [
    ("fwmlp_layers contains 3, but the layers are numbered from 0 to 2", {"fwmlp_layers": [3]}),
    ("contain 1 more than once; a layer has at most one memory", {"fwmlp_layers": [1], "fwpkm_layers": [1]}),
    ("fwmlp_lookahead=8 must be below fwmlp_chunk_size=8", {"fwmlp_layers": [1], "fwmlp_lookahead": 8}),
    ("fwmlp_value_dim=1 cannot be z-scored", {"fwmlp_layers": [1], "fwmlp_value_dim": 1}),
    ("fwmlp_inner_lr=-1 must be a finite number", {"fwmlp_inner_lr": -1}),
    ("fwmlp_hidden is not a field", {"fwmlp_hidden": 3}),
])  # fmt: skip
def test_fields_that_do_not_fit_are_refused(message: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        FwPKMHFConfig(num_hidden_layers=3, **{"fwmlp_chunk_size": 8, **fields})


def test_defaults_are_those_of_training() -> None:
    made, ours = FwPKMHFConfig(), FwMLPConfig()
    for name in exported_config.FAST_MLP_FIELDS:
        assert getattr(made, f"fwmlp_{name}") == getattr(ours, name), name
