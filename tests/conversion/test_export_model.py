"""An exported model is the Megatron model: logits, memories, dtypes, names, and the comparison that says so."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.checkpoint.checkpoint_reader import CheckpointContents
from megatron_fwpkm.config import FwPKMConfig, ModelConfig
from megatron_fwpkm.config.field_metadata import TRAINING_ONLY, marked
from megatron_fwpkm.conversion import export as export_module
from megatron_fwpkm.conversion import verify as verify_module
from megatron_fwpkm.conversion.export import export, hf_model, hf_model_from_checkpoint
from megatron_fwpkm.conversion.exported_config import default_memory, hf_config
from megatron_fwpkm.conversion.near_ties import first_near_tie, near_ties
from megatron_fwpkm.conversion.verify import Check, megatron_forward, verify
from megatron_fwpkm.hf.attention import rotary_angles
from megatron_fwpkm.models.builder import build_model
from megatron_fwpkm.ops import MemoryOptions
from megatron_fwpkm.ops.initialization import initial_sub_keys, initial_values
from tests.layers.megatron import initialize, tiny
from tests.quick_cases import product_cases

from ..checkpoint.contents import contents_of

VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"reset": "step", "boundary": "carry", "lookahead": 2}, {"untie_embeddings_and_output_weights": True}),
    (
        {"reset": "document", "gate": False, "normalize_targets": False},
        {"add_bias_linear": True, "layer_pattern": "fa"},
    ),
    ({"score": "dot_product", "num_heads": 2, "layer_numbers": (1,)}, {"qk_layernorm": False, "rotary_percent": 0.5}),
    ({}, {"use_rope_scaling": True, "rope_scaling_factor": 32.0, "rotary_base": 500000.0, "kv_channels": 32}),
    ({"gate_writes": False}, {"attention_output_gate": True, "add_bias_linear": True}),
    ({}, {"rope_type": "yarn", "rotary_scaling_factor": 4.0, "rotary_percent": 0.5, "seq_length": 16}),
    ({"table_dtype": "bf16"}, {}),
    ({"table_dtype": "bf16", "reset": "step"}, {}),
    ({"pkm": {"layer_numbers": (1, 3)}}, {}),
    ({"layer_numbers": ()}, {"num_query_groups": None, "layer_pattern": "swa:0"}),
]


@pytest.fixture(autouse=True)
def parallel_state() -> None:
    """Megatron's models need it."""
    initialize()


def contents(fwpkm: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> CheckpointContents:
    return contents_of(tiny(model=model, **(fwpkm or {})), vocab_size=60, padded=64)


@pytest.mark.parametrize(("fwpkm", "model"), VARIANTS)
def test_logits_equal_megatrons(fwpkm: dict[str, Any], model: dict[str, Any]) -> None:
    source = contents(fwpkm, model)
    exported = hf_model(source).double()  # float32 may choose another slot at a near tie, which depends on the CPU
    forward = megatron_forward(source, exported.config.fwpkm_memory, torch.float32, torch.float64)
    ids = torch.randint(60, (1, 70), generator=torch.Generator().manual_seed(1))
    for length in (1, 16, 17, 70):
        with torch.no_grad():
            logits = exported(ids[:, :length], use_cache=False).logits
        assert logits.std() > 0.1
        torch.testing.assert_close(logits, forward(ids[:, :length]), rtol=1e-10, atol=1e-10)
        # The comparison leaves no trace: the next text starts from the same memory.
        torch.testing.assert_close(logits, forward(ids[:, :length]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("factor", [None, 8.0, 32.0])
def test_rotary_angles_are_rounded_as_megatrons(factor: float | None) -> None:
    """Bit for bit, far beyond the training length."""
    scaling = {} if factor is None else {"use_rope_scaling": True, "rope_scaling_factor": factor, "kv_channels": 128}
    built = build_model(tiny(model={"rotary_percent": 0.5, **scaling}), 64)
    freqs = built.rotary_pos_emb(5000)[:, 0, 0]
    cos, sin = rotary_angles(torch.arange(5000).unsqueeze(0), freqs.shape[-1], 10000.0, factor)
    assert torch.equal(cos[0, 0], freqs.cos()) and torch.equal(sin[0, 0], freqs.sin())


def test_which_memory_is_exported() -> None:
    source = contents({"reset": "never"})
    fwpkm, seed = source.config.fwpkm, source.config.training.seed
    trained, first = hf_model(source), hf_model(source, fast_weights="initial")
    tables = trained.model.layers[1].memory, first.model.layers[1].memory
    assert torch.equal(tables[0].values, source.fast[2].tables["values"])
    assert torch.equal(tables[0].sub_keys, source.fast[2].tables["sub_keys"])
    assert torch.equal(tables[1].values, initial_values(fwpkm, seed, 2))
    assert torch.equal(tables[1].sub_keys, initial_sub_keys(fwpkm, seed, 2))
    assert (trained.config.fwpkm_memory, first.config.fwpkm_memory) == ("trained", "initial")
    for reset, expected in (("never", "trained"), ("step", "initial"), ("document", "initial")):
        assert hf_model(contents({"reset": reset})).config.fwpkm_memory == expected
    with pytest.raises(ValueError, match="contains no memory for layer 2; use --fast-weights initial"):
        hf_model(replace(source, fast={}), fast_weights="trained")


def test_an_exported_model_shares_nothing_with_its_source() -> None:
    source = contents()
    exported = hf_model(source)
    with torch.no_grad():
        for tensor in exported.state_dict().values():
            tensor.zero_()
    assert all(state.tables["values"].abs().sum() > 0 for state in source.fast.values())
    assert source.slow["embedding.word_embeddings.weight"].abs().sum() > 0


def test_bfloat16_tables_are_exported_in_float32() -> None:
    source = contents({"table_dtype": "bf16"})
    table = hf_model(source).model.layers[1].memory.values
    assert source.fast[2].tables["values"].dtype == torch.bfloat16 and table.dtype == torch.float32
    assert torch.equal(table, source.fast[2].tables["values"].float())


def test_half_precision_keeps_the_tables() -> None:
    exported = hf_model(contents(), dtype="bfloat16")
    assert exported.model.embed_tokens.weight.dtype == torch.bfloat16
    assert exported.model.layers[1].memory.values.dtype == torch.float32
    with pytest.raises(ValueError, match="dtype 'int8' is not known; choose one of: float32, bfloat16, float16"):
        hf_model(contents(), dtype="int8")


def test_sizes_are_translated() -> None:
    config = hf_config(
        contents({}, {"layer_pattern": "swa:5,fa,swa:0", "max_position_embeddings": 99}), "initial"
    )
    assert config.token_mixers == ["swa", "fa", "swa"]
    assert config.attention_windows == [6, None, 1]  # Transformers counts the token itself
    assert config.fwpkm_layers == [1, 2]  # from 0
    assert (config.max_position_embeddings, config.training_length) == (99, 48)
    assert (config.vocab_size, config.intermediate_size, config.head_dim) == (60, 48, 8)


def watched(group: Any, read: set[str]) -> Any:
    """A copy of a group of options that notes which of them are read."""

    class Watched(type(group)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    copy = object.__new__(Watched)
    vars(copy).update(vars(group))
    return copy


def test_no_option_of_the_model_is_forgotten() -> None:
    """A new option must either reach the exported configuration or be marked TRAINING_ONLY."""
    source = contents(
        {}, {"use_rope_scaling": True, "kv_channels": 32, "layer_pattern": "swa", "window_size": (5, 0)}
    )
    read: set[str] = set()
    groups = {name: watched(getattr(source.config, name), read) for name in ("model", "fwpkm")}
    watching = replace(source, config=replace(source.config, **groups))
    hf_config(watching, default_memory(watching.config))
    for group in (ModelConfig, FwPKMConfig):
        names = {field.name for field in fields(group)}
        assert read & names == names - {*marked(group, TRAINING_ONLY)}


@pytest.fixture
def fake_checkpoint(monkeypatch: pytest.MonkeyPatch) -> CheckpointContents:
    """Whatever checkpoint is asked for has these contents."""
    source = contents({"reset": "step"})
    for module in (export_module, verify_module):
        monkeypatch.setattr(module, "checkpoint_contents", lambda path, replica=0: source)
    return source


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verify_accepts_an_export(fake_checkpoint: CheckpointContents, tmp_path: Path, dtype: str) -> None:
    export("checkpoint", tmp_path / "hf", dtype=dtype)
    checks = verify("checkpoint", tmp_path / "hf")
    assert {check.tokens for check in checks} >= {1, 16, 17, 33, 48}
    assert sum("Megatron, float64" in check.name for check in checks) == 5
    assert len(checks) == 13 and all(check.passed for check in checks), [check.row() for check in checks]


@pytest.mark.parametrize(
    "damaged",
    product_cases(
        ["mlp.up_proj.weight", "memory.values", "memory.query_proj.bias", "k_norm.weight"],
        quick=lambda name: "memory" in name,
    ),
)
def test_verify_finds_a_wrong_weight(fake_checkpoint: CheckpointContents, tmp_path: Path, damaged: str) -> None:
    export("checkpoint", tmp_path / "hf")
    model, _ = hf_model_from_checkpoint(tmp_path / "hf")
    with torch.no_grad():
        next(tensor for name, tensor in model.state_dict().items() if name.endswith(damaged)).add_(0.02)
    model.save_pretrained(tmp_path / "hf")
    checks = verify("checkpoint", tmp_path / "hf", lengths=[40])
    assert [check.passed for check in checks] == [False, False, True, True, True]
    assert "FAILED" in checks[1].row() and "1e-05" in checks[1].row()


def test_verify_refuses_another_model(fake_checkpoint: CheckpointContents, tmp_path: Path) -> None:
    hf_model(contents({"layer_numbers": (2,)})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"are different models: .* \(3, 32, 60, 2\) in .* and \(3, 32, 60, 1\)"):
        verify("checkpoint", tmp_path)


def test_float32_is_compared_up_to_the_first_near_tie() -> None:
    """Two sub-keys at almost one distance, at the border of the chosen ones, from token 21 on."""
    exact = hf_model(contents({"layer_numbers": (2,), "topk": 1, "inner_lr": 0.0})).double()
    memory = exact.model.layers[1].memory
    ids = torch.randint(60, (1, 40), generator=torch.Generator().manual_seed(2))
    assert first_near_tie(exact, ids) == 40
    reads: list[torch.Tensor] = []
    memory.query_proj.register_forward_hook(lambda module, inputs, out: reads.append(out))
    with torch.no_grad():
        exact(ids, use_cache=False)
    query = reads[0][0, 21, :8]
    nearest = (memory.sub_keys[0, 0] - query).norm(dim=-1).argmin()
    other = (nearest + 1) % 8
    memory.sub_keys[0, 0, other] = 2 * query - memory.sub_keys[0, 0, nearest] + 1e-9
    found = first_near_tie(exact, ids)
    assert found <= 21 and near_ties(reads[0][:, 21:22, None], memory.sub_keys, memory.options).all()
    assert not memory._forward_pre_hooks


@pytest.mark.parametrize("score", ["idw", "dot_product"])
def test_near_ties(score: str) -> None:
    generator = torch.Generator().manual_seed(0)
    sub_keys = torch.randn(2, 2, 9, 4, generator=generator, dtype=torch.float64)
    queries = torch.randn(1, 30, 2, 8, generator=generator, dtype=torch.float64)
    options = MemoryOptions(topk=3, chunk_size=8, score=score)
    assert not near_ties(queries, sub_keys, options).any()
    sub_keys[1, 1, 5] = sub_keys[1, 1, 2] + 1e-9
    tied = near_ties(queries, sub_keys, options)
    third = (queries[0, :, 1, 4:, None] - sub_keys[1, 1].T).square().sum(1).topk(3, largest=False).indices
    if score == "dot_product":
        third = (queries[0, :, 1, 4:] @ sub_keys[1, 1].T).topk(3).indices
    split = ((third == 5) | (third == 2)).sum(-1) == 1
    assert split.any() and not split.all()
    assert tied[0][split].all()


def test_not_a_number_fails() -> None:
    assert not Check("x", 1, float("nan"), 1.0).passed and not Check("x", 1, float("inf"), 1.0).passed
    logits = torch.tensor([0.0, float("nan")])
    assert verify_module._distance(logits, logits) == float("inf")
