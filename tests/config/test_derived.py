"""Sizes that follow from a configuration, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_fwpkm.config import (
    FwPKMConfig,
    ModelConfig,
    ParallelConfig,
    PretrainConfig,
    TrainingConfig,
    derived,
    parameter_counts,
)
from megatron_fwpkm.config.derived import ShardedCount
from megatron_fwpkm.config.layer_kind import LAYER_KINDS


def test_defaults_of_the_model():
    model = ModelConfig(hidden_size=768, num_attention_heads=12)
    assert derived.ffn_hidden_size(model) == 2048
    assert derived.ffn_hidden_size(replace(model, hidden_size=96)) == 256
    assert derived.ffn_hidden_size(replace(model, hidden_size=100)) == 320  # 266.67 -> 267 -> 320
    assert derived.kv_channels(model) == 64
    assert derived.num_query_groups(model) == 12
    assert derived.rotary_dim(replace(model, rotary_percent=0.25)) == 16
    given = ModelConfig(ffn_hidden_size=7, kv_channels=5, num_query_groups=3)
    assert (derived.ffn_hidden_size(given), derived.kv_channels(given)) == (7, 5)
    assert derived.num_query_groups(given) == 3


@pytest.mark.parametrize(
    ("vocab", "unit", "tensor", "padded"), [(32000, 128, 1, 32000), (1000, 128, 2, 1024), (1, 1, 3, 3)]
)
def test_padded_vocabulary(vocab, unit, tensor, padded):
    assert derived.padded_vocab_size(vocab, unit, tensor) == padded


def test_batch_and_replicas():
    config = PretrainConfig(
        parallel=ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2),
        training=TrainingConfig(micro_batch_size=3),
    )
    assert derived.data_parallel_size(config, 12) == 3
    assert derived.global_batch_size(config, 3) == 9
    assert derived.global_batch_size(replace(config, training=TrainingConfig(global_batch_size=18)), 3) == 18


def test_tables():
    config = PretrainConfig(fwpkm=FwPKMConfig(num_subkeys=16, value_dim=8, key_dim=6, num_heads=2))
    assert derived.num_slots(config.fwpkm) == 256
    assert derived.table_bytes(config) == 4 * (256 * 8 + 2 * 2 * 16 * 3)
    assert derived.table_bytes(config, ranks=2) == 4 * (256 * 4 + 2 * 2 * 8 * 3)


TINY = PretrainConfig(
    model=ModelConfig(
        num_layers=2, hidden_size=6, ffn_hidden_size=10, num_attention_heads=3, num_query_groups=1,
        make_vocab_size_divisible_by=4,
    ),
    fwpkm=FwPKMConfig(layer_numbers=(2,), num_heads=2, key_dim=4, value_dim=5),
)  # fmt: skip


def test_parameters_by_hand():
    parts = {name: part.total for name, part in parameter_counts.parameters_by_part(TINY, 9).items()}
    assert parts == {
        "embedding": 12 * 6,
        "full attention": 2 * (6 + 6 * (6 + 2 + 2) + 2 + 2 + 6 * 6),
        "mlp": 2 * (6 + 6 * 20 + 10 * 6),
        "memory": (6 + 6 * 8 + 8) + (6 + 6 * 5 + 5) + (6 + 6 + 1) + (5 + 5 * 6 + 6),
        "final norm": 6,
    }
    assert parameter_counts.num_parameters(TINY, 9) == sum(parts.values())


def test_the_output_gate_of_attention_is_as_wide_as_the_queries():
    gated = replace(TINY, model=replace(TINY.model, attention_output_gate=True))
    assert parameter_counts.num_parameters(gated, 9) - parameter_counts.num_parameters(TINY, 9) == 2 * 6 * 6


def test_untied_output_and_no_gate():
    untied = replace(TINY, model=replace(TINY.model, untie_embeddings_and_output_weights=True))
    assert parameter_counts.num_parameters(untied, 9) - parameter_counts.num_parameters(TINY, 9) == 72
    open_memory = replace(TINY, fwpkm=replace(TINY.fwpkm, gate=False))
    assert parameter_counts.num_parameters(TINY, 9) - parameter_counts.num_parameters(open_memory, 9) == 13


def test_stages_hold_the_whole_model_and_a_second_tied_embedding():
    config = replace(TINY, parallel=ParallelConfig(pipeline_model_parallel_size=2))
    assert [list(derived.stage_layers(config, stage)) for stage in (0, 1)] == [[1], [2]]
    chunks = replace(
        config,
        model=replace(TINY.model, num_layers=8),
        parallel=replace(config.parallel, num_virtual_stages_per_pipeline_rank=2),
    )
    assert [derived.stage_layers(chunks, stage) for stage in (0, 1)] == [(1, 2, 5, 6), (3, 4, 7, 8)]
    held = sum(parameter_counts.stage_parameters(config, 9, stage).total for stage in (0, 1))
    assert held == parameter_counts.num_parameters(TINY, 9) + 72
    memory = LAYER_KINDS["fwpkm"].parameters(config).total
    first, second = (parameter_counts.stage_parameters(config, 9, stage).total for stage in (0, 1))
    assert second - first == memory + 6  # the final norm
    one = parameter_counts.stage_parameters(TINY, 9, 0)
    assert one.total == parameter_counts.num_parameters(TINY, 9)


def test_a_rank_holds_its_shard_and_all_that_is_replicated():
    assert ShardedCount(sharded=8, replicated=3).on_rank(4) == 5
    assert (ShardedCount(8, 3) + ShardedCount(2, 1)) * 2 == ShardedCount(20, 8)
