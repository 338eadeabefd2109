"""The tables as such: initial memory, protection from casts, reset, preservation, loading."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from megatron.core.transformer.module import Float16Module

from megatron_fwpkm.config import FwPKMConfig
from megatron_fwpkm.layers import fast_weight_tables
from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
from megatron_fwpkm.models.transformer_config import transformer_config
from megatron_fwpkm.ops import FastWeightState, ResetJournal
from megatron_fwpkm.ops.initialization import initial_sub_keys, initial_values
from tests.layers.megatron import tiny

_RESETS = ["never", "step"]


@pytest.fixture(params=["counted", "as on a GPU"])
def journal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals that count their rows, as on a CPU, or that never look."""
    kind = partial(ResetJournal, counts=request.param == "counted")
    monkeypatch.setattr(fast_weight_tables, "ResetJournal", kind)


def memory(**options: Any) -> FastWeightMemoryLayer:
    """A small memory, always with the same weights."""
    torch.manual_seed(0)
    return FastWeightMemoryLayer(transformer_config(tiny(**options)), layer_number=2)


def hidden(seed: int, length: int = 48) -> torch.Tensor:
    return torch.randn(length, 2, 32, generator=torch.Generator().manual_seed(seed))


def snapshot(block: FastWeightMemoryLayer) -> tuple[torch.Tensor, torch.Tensor]:
    return block.sub_keys.clone(), block.values.clone()


def equal(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_initial_memory_has_the_paper_s_distribution() -> None:
    fwpkm = FwPKMConfig(num_heads=2, num_subkeys=100, key_dim=64, value_dim=25)
    sub_keys, values = initial_sub_keys(fwpkm, 1, 2), initial_values(fwpkm, 1, 2)
    assert sub_keys.shape == (2, 2, 100, 32) and values.shape == (10_000, 25)
    assert sub_keys.abs().max() <= 64**-0.5 and sub_keys.std().item() == pytest.approx(64**-0.5 / 3**0.5, rel=0.02)
    assert values.std().item() == pytest.approx(25**-0.5, rel=0.02) and abs(values.mean().item()) < 2e-3


def test_initial_memory_depends_on_seed_and_layer_and_is_cut() -> None:
    fwpkm = FwPKMConfig(num_subkeys=100, value_dim=24)
    whole = initial_values(fwpkm, 1, 2)
    parts = [initial_values(fwpkm, 1, 2, slice(start, start + 8)) for start in (0, 8, 16)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    rows = [initial_sub_keys(fwpkm, 1, 2, slice(start, start + 25)) for start in (0, 25, 50, 75)]
    assert torch.equal(torch.cat(rows, dim=2), initial_sub_keys(fwpkm, 1, 2))
    assert not torch.equal(initial_values(fwpkm, 1, 3), whole) and not torch.equal(initial_values(fwpkm, 2, 2), whole)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_casts_leave_the_tables_alone(cast: str) -> None:
    block = memory()
    before = snapshot(block)
    getattr(block, cast)()
    block.to(torch.float16)
    assert block.query_proj.weight.dtype == torch.float16
    assert equal(snapshot(block), before) and block.values.dtype == torch.float32


def test_tables_follow_to_another_device() -> None:
    block = memory().to("meta")
    assert block.values.device.type == block.sub_keys.device.type == "meta"
    assert block.values.dtype == torch.float32


def test_bfloat16_model_writes_float32_tables() -> None:
    block = memory(bf16=True)
    before = snapshot(block)
    wrapped = Float16Module(block.config, block)
    assert block.values.dtype == torch.float32 and equal(snapshot(block), before)
    out = wrapped.module(hidden(1).bfloat16())
    assert out.dtype == torch.bfloat16 and block.value_proj.weight.dtype == torch.bfloat16
    assert block.values.dtype == torch.float32
    written = block.values[(block.values != before[1]).any(1)]
    assert len(written) and not torch.equal(written, written.bfloat16().float())


def test_bfloat16_tables_stay_what_they_are_and_count_their_writes() -> None:
    block = memory(table_dtype="bf16")
    assert block.sub_keys.dtype == torch.float32 and block.rounding is not None
    assert torch.equal(block.values, initial_values(FwPKMConfig(num_subkeys=8, value_dim=16), 1234, 2).bfloat16())
    before = snapshot(block)
    seed = block.rounding.clone()
    for cast in ("half", "double", "float"):
        getattr(block, cast)()
    assert equal(snapshot(block), before) and block.values.dtype == torch.bfloat16
    assert torch.equal(block.rounding, seed) and block.rounding.dtype == torch.int64
    out = block(hidden(1))
    assert out.dtype == torch.float32 and block.values.dtype == torch.bfloat16
    out.square().sum().backward()
    assert block.query_proj.weight.grad is not None and block.query_proj.weight.grad.abs().sum() > 0
    writes = block.rounding[1].item()
    assert writes == 48 // block.options.chunk_size and torch.equal(block.rounding[[0, 2]], seed[[0, 2]])
    after = snapshot(block)
    with block.preserve_fast_weights():
        block(hidden(2))
        assert block.rounding[1] == 2 * writes
    assert block.rounding[1] == writes and equal(snapshot(block), after)


def test_a_loaded_rounding_keeps_this_rank_s_first_column() -> None:
    whole, part = memory(table_dtype="bf16"), memory(table_dtype="bf16")
    assert whole.rounding is not None and part.rounding is not None
    whole(hidden(1))
    part.load_fast_weights(FastWeightState(part.sub_keys, part.values, None, whole.rounding + 100))
    assert part.rounding.tolist() == [whole.rounding[0].item() + 100, whole.rounding[1].item() + 100, 0]


def test_tables_are_outside_state_dict_and_parameters() -> None:
    block = memory()
    assert not {"values", "sub_keys"} & set(block.state_dict())
    assert not {"values", "sub_keys"} & {name for name, _ in block.named_parameters()}


@pytest.mark.parametrize("boundary", ["drop", "carry"])
@pytest.mark.parametrize("reset", _RESETS)
def test_reset_puts_the_initial_memory_back(journal: None, reset: str, boundary: str) -> None:
    block = memory(reset=reset, boundary=boundary)
    initial = snapshot(block)
    for seed in (1, 2):
        block(hidden(seed))
    assert not equal(snapshot(block), initial) and 0 < block.coverage() <= 1
    block.reset()
    assert equal(snapshot(block), initial) and block.coverage() == 0
    out = block(hidden(3))
    block.reset()
    assert torch.equal(block(hidden(3)), out), "a reset memory answers as a new one"


@pytest.mark.parametrize("reset", _RESETS)
def test_preserved_memory_is_bit_for_bit_as_before(journal: None, reset: str) -> None:
    block = memory(reset=reset)
    initial = snapshot(block)
    block(hidden(1))
    before, coverage, statistics = snapshot(block), block.coverage(), block.statistics()
    other = FastWeightState(block.sub_keys + 1, block.values + 1)
    with block.preserve_fast_weights():
        block(hidden(2))
        inner = snapshot(block)
        with block.preserve_fast_weights():
            block.reset()
            block(hidden(3))
        assert equal(snapshot(block), inner)
        block(hidden(4))
        block.reset()
        assert equal(snapshot(block), initial)
        block.load_fast_weights(other)
        block(hidden(5))
        block.reset()
        assert equal(snapshot(block), initial)
        block(hidden(6))
    assert equal(snapshot(block), before)
    assert (block.coverage(), block.statistics()) == (coverage, statistics)
    block.reset()
    assert equal(snapshot(block), initial), "what a reset restores is preserved as well"


@pytest.mark.parametrize("table_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("reset", _RESETS)
def test_loaded_memory_knows_what_differs_from_the_initial_one(journal: None, reset: str, table_dtype: str) -> None:
    trained, fresh = (memory(reset=reset, table_dtype=table_dtype) for _ in range(2))
    initial = snapshot(fresh)
    trained(hidden(1))
    fresh.load_fast_weights(trained.fast_weights())
    assert equal(snapshot(fresh), snapshot(trained)) and fresh.coverage() == trained.coverage()
    assert torch.equal(fresh(hidden(2)), trained(hidden(2)))
    fresh.reset()
    assert equal(snapshot(fresh), initial)


def test_fast_weights_of_another_shape_are_refused() -> None:
    block = memory()
    wrong = FastWeightState(block.sub_keys, block.values[:, :8])
    with pytest.raises(ValueError, match=r"layer 2 do not fit: values has shape \[64, 8\], but this memory has"):
        block.load_fast_weights(wrong)
