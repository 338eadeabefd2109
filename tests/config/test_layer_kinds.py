"""Kinds of layers: what a layer is made of, and what a kind that is asked for cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from megatron_fwpkm.config import DataConfig, FwPKMConfig, ModelConfig, ParallelConfig, PretrainConfig
from megatron_fwpkm.config.derived import ShardedCount
from megatron_fwpkm.config.layer_kind import LAYER_KINDS, LayerKind, Role, register_layer_kind
from megatron_fwpkm.config.layer_kinds import LayerParts, kinds_in_use, layer_plan, layers_of
from megatron_fwpkm.config.parameter_counts import parameters_by_part
from megatron_fwpkm.config.validation import problems

BASE = PretrainConfig(model=ModelConfig(num_layers=3, hidden_size=24), fwpkm=FwPKMConfig(layer_numbers=(3,)))


@pytest.fixture
def shifted() -> Iterator[LayerKind]:
    kind = LayerKind(
        "shifted", Role.MIXER, "shifted", lambda config: ShardedCount(sharded=5), lambda config: ShardedCount(),
        divided=lambda config: {"--hidden-size": config.model.hidden_size},
    )  # fmt: skip
    register_layer_kind(kind)
    yield kind
    del LAYER_KINDS[kind.name]


def with_mixers(*names: str) -> PretrainConfig:
    return replace(BASE, model=replace(BASE.model, layer_pattern=",".join(names)))


def of_mixers(config: PretrainConfig) -> list[str]:
    return [line for line in problems(config) if "mixer" in line or "hidden-size" in line]


def test_a_plain_model_is_full_attention_throughout() -> None:
    plain, remembering = LayerParts(None, "fa", "swiglu"), LayerParts("fwpkm", "fa", "swiglu")
    assert layer_plan(BASE) == (plain, plain, remembering)
    assert [kind.name for kind in kinds_in_use(BASE)] == ["fa", "swiglu", "fwpkm"]


def test_mixers_are_named_in_a_pattern(shifted: LayerKind) -> None:
    mixed = with_mixers("shifted", "fa", "shifted")
    assert [parts.mixer for parts in layer_plan(mixed)] == ["shifted", "fa", "shifted"]
    assert {parts.mixer for parts in layer_plan(with_mixers("shifted"))} == {"shifted"}
    assert layers_of(mixed, shifted) == (1, 3)
    assert parameters_by_part(mixed, 10)["shifted"] == ShardedCount(sharded=10, replicated=2 * 24)  # a norm for each
    assert of_mixers(mixed) == []


def test_what_a_kind_cannot_do_is_refused(shifted: LayerKind) -> None:
    config = replace(with_mixers("shifted"), data=DataConfig(reset_attention_mask=True))
    config = replace(config, parallel=ParallelConfig(context_parallel_size=2, tensor_model_parallel_size=5))
    said = "\n".join(of_mixers(config))
    assert "token mixer shifted does not support --context-parallel-size 2" in said
    assert "token mixer shifted does not support --reset-attention-mask" in said
    assert "--tensor-model-parallel-size 5 does not divide --hidden-size 24 (near: 20 or 25)" in said
    assert "--num-attention-heads" not in said
