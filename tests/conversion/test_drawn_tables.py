"""An export without fast weights draws the run's initial ones when it is loaded, or says that it cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_fwpkm.checkpoint.checkpoint_reader import CheckpointContents
from megatron_fwpkm.conversion import export as export_module
from megatron_fwpkm.conversion import verify as verify_module
from megatron_fwpkm.conversion.export import export, hf_model
from megatron_fwpkm.conversion.verify import exported_from, verify
from megatron_fwpkm.hf import FwPKMForCausalLM, FwPKMHFConfig
from megatron_fwpkm.hf.drawn_tables import drawn_tables
from tests.checkpoint.contents import contents_of
from tests.layers.megatron import initialize, tiny


@pytest.fixture(params=["fp32", "bf16"])
def contents(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CheckpointContents:
    """Of a model with a product key memory and two fast-weight MLPs; any checkpoint that is asked for has them."""
    initialize()
    config = tiny(layer_numbers=(2,), table_dtype=request.param, fwmlp={"layer_numbers": (1, 3)}, reset="never")
    config = replace(config, training=replace(config.training, seed=77))
    found = contents_of(config, 60, 64)
    for module in (export_module, verify_module):
        monkeypatch.setattr(module, "checkpoint_contents", lambda path, replica=0: found)
    return found


def exported(folder: Path) -> Path:
    return export("checkpoint", folder, tokenizer=False, fast_weights="none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tables_of_the_run_are_drawn(contents: CheckpointContents, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = exported(tmp_path / "hf")
    assert exported_from(folder) == "export of iteration 7, initial fast weights, which are drawn at loading"
    assert "The files do not contain that memory" in (folder / "README.md").read_text()
    assert not [name for name in load_file(folder / "model.safetensors") if name.endswith((".values", "up_weight"))]
    loaded, info = FwPKMForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and loaded.config.fwpkm_drawn_tables is None
    expected = hf_model(contents, fast_weights="initial").state_dict()
    found = loaded.state_dict()
    tables = [name for name, _ in loaded.named_buffers()]
    assert found.keys() == expected.keys() and len(tables) == 2 + 2 * 6
    for name in tables:
        assert found[name].dtype == torch.float32 and torch.equal(found[name], expected[name]), name
    loaded.save_pretrained(tmp_path / "again")
    again = FwPKMForCausalLM.from_pretrained(tmp_path / "again")
    assert all(torch.equal(tensor, found[name]) for name, tensor in again.state_dict().items() if name in tables)


def test_it_is_verified(contents: CheckpointContents, tmp_path: Path) -> None:
    checks = verify("checkpoint", exported(tmp_path / "hf"), lengths=[17, 48])
    assert all(check.passed for check in checks), [check.row() for check in checks]


def test_other_random_numbers_are_refused(
    contents: CheckpointContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another torch would draw them: one number differs in its last bit."""
    folder = exported(tmp_path / "hf")

    def otherwise(*arguments: Any) -> dict[str, torch.Tensor]:
        tables = drawn_tables(*arguments)
        last = list(tables.values())[-1].view(-1)
        last[3] = torch.nextafter(last[3], torch.tensor(9.0))
        return tables

    monkeypatch.setattr("megatron_fwpkm.hf.drawn_tables.drawn_tables", otherwise)
    with pytest.raises(ValueError, match=f"torch {torch.__version__.split('+')[0]}.* draws other initial fast weights"):
        FwPKMForCausalLM.from_pretrained(folder)


def test_a_model_without_memories_has_none_to_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    initialize()
    found = contents_of(tiny(layer_numbers=()), 60, 64)
    monkeypatch.setattr(export_module, "checkpoint_contents", lambda path, replica: found)
    folder = exported(tmp_path / "hf")
    assert json.loads((folder / "config.json").read_text())["fwpkm_drawn_tables"] is None
    assert exported_from(folder) == "export of iteration 7"


RULE = {"seed": 1, "table_dtype": "fp32", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fwpkm_drawn_tables": {"seed": 1}}, "must be {'seed': an integer"),
        ({"fwpkm_drawn_tables": RULE | {"seed": -1}}, "must be {'seed': an integer"),
        ({"fwpkm_drawn_tables": RULE | {"seed": True}}, "must be {'seed': an integer"),
        ({"fwpkm_drawn_tables": RULE | {"table_dtype": "int8"}}, "must be {'seed': an integer"),
        ({"fwpkm_drawn_tables": RULE | {"sha256": "abc"}}, "must be {'seed': an integer"),
        ({"fwpkm_drawn_tables": RULE, "fwpkm_memory": "trained"}, "fwpkm_memory='trained' and the layers are"),
        ({"fwpkm_drawn_tables": RULE, "fwpkm_layers": []}, "the layers are \\[\\]; set it to None"),
        ({"fwpkm_replica": -1}, "fwpkm_replica=-1 must be an integer of at least 0, or None"),
    ],
)
def test_fields_that_say_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FwPKMHFConfig(**{"num_hidden_layers": 3, "fwpkm_layers": [1], **changes})
