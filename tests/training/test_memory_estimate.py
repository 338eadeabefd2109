"""The estimate of memory: exact in what can be exact, and near what the real model keeps in what is estimated."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from benchmarks import memory_estimate
from megatron_fwpkm.config import EngineConfig, FwPKMConfig, ModelConfig, ParallelConfig, PretrainConfig, TrainingConfig
from megatron_fwpkm.config.derived import embedding_rows, table_bytes
from megatron_fwpkm.config.layer_kinds import layer_plan
from megatron_fwpkm.config.parameter_counts import num_parameters, stage_parameters
from megatron_fwpkm.config.undo_log_bytes import document_start_bytes, passing_log_bytes, undo_log_bytes
from megatron_fwpkm.training.memory_estimate import (
    PROCESS_BYTES,
    activation_bytes,
    check_tables_fit,
    estimate_memory,
    layer_bytes_per_token,
)
from tests.spawned_ranks import run_distributed

BASE = PretrainConfig(
    model=ModelConfig(
        num_layers=2, hidden_size=64, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=192, seq_length=256,
        make_vocab_size_divisible_by=1,
    ),
    fwpkm=FwPKMConfig(layer_numbers=(1,), num_subkeys=64, key_dim=64, value_dim=64, chunk_size=64),
    training=TrainingConfig(micro_batch_size=2),
)  # fmt: skip


def test_stored_bytes_follow_from_the_parameters():
    parameters = num_parameters(BASE, 512)
    found = estimate_memory(BASE, 512, world_size=1)
    assert (found.weights, found.gradients, found.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert found.tables == table_bytes(BASE)
    half = estimate_memory(replace(BASE, training=replace(BASE.training, bf16=True)), 512, world_size=1)
    assert (half.weights, half.gradients, half.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters)
    sharded = replace(BASE, parallel=ParallelConfig(use_distributed_optimizer=True))
    assert estimate_memory(sharded, 512, world_size=4).optimizer == 2 * parameters
    on_device = set(type(found).__dataclass_fields__) - {"offloaded"}
    assert found.total == sum(getattr(found, part) for part in on_device) == found.resident - PROCESS_BYTES


@pytest.mark.parametrize(("stage", "bytes_of"), [(0, (4, 4, 8)), (1, (4, 4, 3)), (2, (4, 1, 3)), (3, (1, 1, 3))])
def test_zero_shards_what_its_stage_says(stage, bytes_of):
    """Over four replicas; beside float32 weights, too, DeepSpeed keeps a copy of what it shards."""
    parameters = num_parameters(BASE, 512)
    found = estimate_memory(replace(BASE, engine=EngineConfig("deepspeed", stage)), 512, world_size=4)
    assert (found.weights, found.gradients, found.optimizer) == tuple(parameters * count for count in bytes_of)


def test_temporaries_of_the_fullest_moment():
    """The gradient of the output weights and, in bf16, another copy of the logits; few activations leave the rest."""
    big, tokens = replace(BASE, model=replace(BASE.model, hidden_size=512)), 2 * 256
    vocabulary = 2048
    embedding = vocabulary * 512
    assert estimate_memory(big, vocabulary, 1).temporaries == 4 * embedding
    half = replace(big, training=replace(big.training, bf16=True))
    assert estimate_memory(half, vocabulary, 1).temporaries == 2 * embedding + 2 * tokens * vocabulary
    two = replace(half, parallel=ParallelConfig(tensor_model_parallel_size=2))
    assert estimate_memory(two, vocabulary, 2).temporaries == (2 * embedding + 2 * tokens * vocabulary) // 2
    short = replace(big, model=replace(big.model, seq_length=64), training=replace(big.training, micro_batch_size=1))
    found = estimate_memory(short, 32768, 1)
    assert found.temporaries + found.activations == 2 * 4 * 32768 * 512
    stages = replace(big, parallel=ParallelConfig(pipeline_model_parallel_size=2))
    first, last = (estimate_memory(stages, vocabulary, 2, stage).temporaries for stage in (0, 1))
    assert (first, last) == (0, 4 * embedding)


@pytest.mark.slow
def test_a_whole_run_needs_what_was_said():
    """Also on a loaded machine: resident bytes do not depend on time."""
    case = memory_estimate.CASES["logits"]
    measured = memory_estimate.measure("logits")["peak"]
    assert memory_estimate.estimate(case)["resident"] == pytest.approx(measured, rel=memory_estimate.TOLERANCE)


def test_tables_larger_than_the_device_are_refused():
    config = PretrainConfig(
        model=ModelConfig(num_layers=4),
        fwpkm=FwPKMConfig(layer_numbers=(1, 2, 3), num_subkeys=64, value_dim=256, key_dim=32),
        parallel=ParallelConfig(pipeline_model_parallel_size=2, tensor_model_parallel_size=2),
    )
    one = (64 * 64 * 256 + 64 * 32) * 4 // 2
    check_tables_fit(config, 2 * one)
    check_tables_fit(replace(config, fwpkm=replace(config.fwpkm, layer_numbers=())), 0)
    with pytest.raises(ValueError, match="the fast-weight tables need 4.0 MiB on each rank, but the device has only"):
        check_tables_fit(config, 2 * one - 1)


def test_bfloat16_tables_halve_table_and_log():
    fp32, bf16 = BASE, replace(BASE, fwpkm=replace(BASE.fwpkm, table_dtype="bf16"))
    sub_keys = 4 * BASE.fwpkm.num_heads * BASE.fwpkm.num_subkeys * BASE.fwpkm.key_dim
    assert 2 * (table_bytes(bf16) - sub_keys) == table_bytes(fp32) - sub_keys
    assert undo_log_bytes(fp32) - undo_log_bytes(bf16) == 4 * (2 * 64 * 8) * 2 * 64
    assert estimate_memory(bf16, 512, 1).tables == table_bytes(bf16)


def test_a_pipeline_keeps_micro_batches():
    two = replace(
        BASE,
        parallel=ParallelConfig(pipeline_model_parallel_size=2),
        training=replace(BASE.training, global_batch_size=8),
    )
    assert estimate_memory(two, 512, 2, 0).activations == 2 * activation_bytes(two, 512, 0)
    assert estimate_memory(two, 512, 2, 1).activations == activation_bytes(two, 512, 1)


def test_context_parallel_ranks_share_tokens_and_tables():
    four = replace(BASE, parallel=ParallelConfig(context_parallel_size=4, use_distributed_optimizer=True))
    parameters = num_parameters(BASE, 512)
    found, alone = estimate_memory(four, 512, world_size=8), estimate_memory(BASE, 512, 1)
    assert found.weights == alone.weights and found.optimizer == parameters  # over two replicas of four ranks
    assert found.tables == alone.tables // 4
    assert undo_log_bytes(four) == 4 * (2 * 64 * 8) * (4 * 64 // 4 + 8) + 4 * 4 * 2 * 64 * 32 // 4
    everyones = 512 * (5 * 64 + 64 * 8)  # queries and chosen slots
    own, theirs = found.activations - everyones, alone.activations - everyones
    gathered = 512 // 4 * 3 * 2 * (6 + 4) * 2 * 2 * 16  # keys and values of the other three, in two layers
    assert own == theirs // 4 + gathered


def test_an_interleaved_pipeline_keeps_more():
    two = ParallelConfig(pipeline_model_parallel_size=2)
    four = replace(BASE, model=replace(BASE.model, num_layers=4), training=replace(BASE.training, global_batch_size=16))
    plain = replace(four, parallel=two)
    interleaved = replace(four, parallel=replace(two, num_virtual_stages_per_pipeline_rank=2))
    assert estimate_memory(plain, 512, 2, 0).activations == 2 * activation_bytes(plain, 512, 0)
    assert estimate_memory(interleaved, 512, 2, 0).activations == activation_bytes(interleaved, 512, 0) * 5 // 2


def test_full_recompute_keeps_inputs_and_one_unit():
    units = {}
    for method, layers in (("uniform", 1), ("uniform", 4), ("block", 3)):
        training = replace(
            BASE.training, recompute_granularity="full", recompute_method=method, recompute_num_layers=layers
        )
        config = replace(BASE, model=replace(BASE.model, num_layers=4), training=training)
        found = estimate_memory(replace(config, fwpkm=replace(BASE.fwpkm, layer_numbers=())), 512, 1).activations
        units[method, layers] = found
    layer, one_input = 512 * layer_bytes_per_token(BASE, layer_plan(BASE)[0]), 512 * 4 * 64
    end = units["uniform", 1] - layer - 4 * one_input  # logits and the last norm
    assert units["uniform", 4] == end + one_input + 4 * layer
    assert units["block", 3] == end + 3 * one_input + 2 * layer  # one that stays, one made anew


def test_offloaded_layers_wait_on_the_host_but_for_one():
    four = replace(BASE, model=replace(BASE.model, num_layers=4))
    layer = 512 * layer_bytes_per_token(BASE, layer_plan(BASE)[0])
    none = estimate_memory(four, 512, 1)
    assert none.offloaded == 0
    for layers in (1, 3, 4):
        found = estimate_memory(
            replace(four, training=replace(BASE.training, cpu_offloading_num_layers=layers)), 512, 1
        )
        assert found.offloaded == layers * layer
        assert found.activations == none.activations - layers * layer + layer
    stages = ParallelConfig(pipeline_model_parallel_size=2)
    training = replace(BASE.training, cpu_offloading_num_layers=1, global_batch_size=8)
    piped = replace(four, parallel=stages, training=training)
    assert [estimate_memory(piped, 512, 2, stage).offloaded for stage in (0, 1)] == [2 * layer, layer]


def test_undo_log_is_bounded_by_reads_and_by_slots():
    keys = 4 * 2 * 64 * 32
    assert undo_log_bytes(BASE) == 4 * (2 * 64 * 8) * (4 * 64 + 8) + 4 * keys
    few = replace(BASE, fwpkm=replace(BASE.fwpkm, num_subkeys=8))
    assert undo_log_bytes(few) == 4 * 64 * (4 * 64 + 8) + 4 * keys // 8
    tail = replace(BASE, model=replace(BASE.model, seq_length=96))
    assert undo_log_bytes(tail) == (2 * 64 * 8 + 2 * 32 * 8) * (4 * 64 + 8) + 2 * keys
    for still in ({"addressing_weight": 0.0}, {"inner_lr": 0.0}):
        config = replace(BASE, fwpkm=replace(BASE.fwpkm, **still))
        assert undo_log_bytes(config) == 4 * (2 * 64 * 8) * (4 * 64 + 8)


def test_undo_log_modes():
    def with_mode(mode: str, **changes: object) -> PretrainConfig:
        return replace(BASE, fwpkm=replace(BASE.fwpkm, undo_log=mode, **changes))

    rows, sub_keys = 4 * (2 * 64 * 8), 4 * 4 * 2 * 64 * 32
    assert undo_log_bytes(with_mode("bf16")) == rows * (2 * 64 + 8) + sub_keys
    assert undo_log_bytes(with_mode("recompute")) == min(64**2, rows) * (4 * 64 + 8) + sub_keys
    # Eight sub-keys have 64 slots, which every chunk logs again.
    assert undo_log_bytes(with_mode("recompute", num_subkeys=8)) == 64 * (4 * 64 + 8) + sub_keys // 8
    for mode in ("bf16", "recompute"):
        assert passing_log_bytes(with_mode(mode)) == rows * (4 * 64 + 8)
        found, plain = (estimate_memory(with_mode(m), 512, 1).undo_log for m in (mode, "fp32"))
        passing = passing_log_bytes(with_mode(mode))
        assert found - plain == undo_log_bytes(with_mode(mode)) + passing - undo_log_bytes(BASE)
    assert passing_log_bytes(BASE) == 0 == passing_log_bytes(with_mode("bf16", table_dtype="bf16"))


def test_documents_keep_sequences_apart_and_cut_chunks():
    keys, row = 4 * 2 * 64 * 32, 4 * 64 + 8

    def documents(**changes: object) -> PretrainConfig:
        return replace(BASE, fwpkm=replace(BASE.fwpkm, **{"reset": "document", **changes}))

    assert undo_log_bytes(documents()) == 2 * 4 * (64 * 8 * row + keys)
    assert document_start_bytes(documents()) == keys
    assert document_start_bytes(documents(addressing_weight=0.0)) == document_start_bytes(BASE) == 0
    owned = documents(reset="step", owner="sequence")
    assert undo_log_bytes(owned) == undo_log_bytes(documents()) and document_start_bytes(owned) == 0
    # 64 slots, less than a chunk reads: one more chunk may log all of them again.
    assert undo_log_bytes(documents(num_subkeys=8)) == 2 * 4 * (64 * row + keys // 8)
    assert document_start_bytes(documents(num_subkeys=8)) == 64 * row + keys // 8
    # The log `recompute` has a slot once per document; 1,024 slots are more than a chunk's reads, not a sequence's.
    some = documents(num_subkeys=32, undo_log="recompute")
    assert undo_log_bytes(some) == 2 * (1024 * row + 4 * keys // 2)
    assert document_start_bytes(some) == 1024 * row + keys // 2
    assert document_start_bytes(documents(num_subkeys=32)) == keys // 2
    assert passing_log_bytes(some) == 4 * 64 * 8 * row  # of one sequence at a time


@pytest.mark.parametrize("undo_log", ["fp32", "recompute"])
@pytest.mark.parametrize("num_subkeys", [2, 3, 5])
def test_no_cut_of_a_sequence_logs_more(num_subkeys, undo_log):
    """All ways to cut ten tokens into documents; two reads per token, four tokens per chunk."""
    fwpkm = replace(BASE.fwpkm, reset="document", num_subkeys=num_subkeys, topk=2, chunk_size=4, undo_log=undo_log)
    training = replace(BASE.training, micro_batch_size=1)
    config = replace(BASE, model=replace(BASE.model, seq_length=10), fwpkm=fwpkm, training=training)
    slots, row, keys = num_subkeys**2, 4 * 64 + 8, 4 * 2 * num_subkeys * 32
    slack = []
    for places in product([False, True], repeat=9):
        edges = [0, *(place for place, cut in enumerate(places, 1) if cut), 10]
        lengths = [stop - start for start, stop in pairwise(edges)]
        chunks = [min(4, length - start) for length in lengths for start in range(0, length, 4)]
        calls = lengths if undo_log == "recompute" else chunks
        logged = sum(min(slots, 2 * tokens) for tokens in calls) * row + len(chunks) * keys
        slack.append(undo_log_bytes(config) + sum(places) * document_start_bytes(config) - logged)
    assert min(slack) == slack[0] == 0


# The real model


def build(config: PretrainConfig, vocabulary: int):
    from megatron_fwpkm.models.builder import build_model

    rows = embedding_rows(config, vocabulary)
    return build_model(config, rows)


@pytest.fixture(scope="module")
def single_process():
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    with megatron_run(ParallelConfig(), TrainingConfig(deterministic=False, num_threads=1)):
        yield


CHANGES = {
    "base": {},
    "untied": {"model": {"untie_embeddings_and_output_weights": True, "make_vocab_size_divisible_by": 128}},
    "biases": {"model": {"add_bias_linear": True, "qk_layernorm": False, "attention_output_gate": True}},
    "wide heads": {"model": {"kv_channels": 24, "num_query_groups": None, "ffn_hidden_size": None}},
    "memories": {"fwpkm": {"layer_numbers": (1, 2), "num_heads": 2, "value_dim": 48, "gate": False}},
    "none": {"fwpkm": {"layer_numbers": ()}, "model": {"num_layers": 1}},
}


def changed(name: str) -> PretrainConfig:
    return replace(BASE, **{group: replace(getattr(BASE, group), **fields) for group, fields in CHANGES[name].items()})


@pytest.mark.parametrize("name", CHANGES)
def test_parameters_are_those_of_the_real_model(single_process, name):
    config = changed(name)
    model = build(config, 500)
    assert num_parameters(config, 500) == sum(parameter.numel() for parameter in model.parameters())


def test_tables_are_those_of_the_real_model(single_process):
    from megatron_fwpkm.models.builder import memory_layers

    state = memory_layers(build(BASE, 500))[0].fast_weights()
    assert table_bytes(BASE) == sum(table.numel() * table.element_size() for table in (state.sub_keys, state.values))


RECOMPUTE = {
    "nothing": {},
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ("mlp",)},
    "layers": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def keep(config: PretrainConfig, starts: tuple[int, ...] = ()) -> list[torch.Tensor]:
    """What autograd keeps of a forward pass on the device, a tensor per storage, without parameters and buffers.

    In the first sequence documents begin at `starts`.
    """
    from megatron.core.transformer.module import Float16Module

    model = build(config, 512)
    module = Float16Module(model.config, model) if config.training.bf16 else model
    lasting = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}  # a kept tensor's address is not used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in lasting:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(0, 512, (2, 256))
    document_starts = torch.zeros(tokens.shape, dtype=torch.bool)
    document_starts[0, list(starts)] = True
    model.set_document_starts(document_starts)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(tokens, torch.arange(256).expand(2, 256), None, labels=tokens)
    return list(saved.values())


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("memories", [(), (1,)])
def test_activations_are_near_what_autograd_saves(single_process, bf16, memories, recompute):
    config = replace(
        BASE,
        model=replace(BASE.model, attention_output_gate=bool(memories)),
        fwpkm=replace(BASE.fwpkm, layer_numbers=memories),
        training=replace(BASE.training, bf16=bf16, **RECOMPUTE[recompute]),
    )
    measured = sum(tensor.untyped_storage().nbytes() for tensor in keep(config))
    estimate = activation_bytes(config, 512, 0)
    most = estimate + len(memories) * undo_log_bytes(config)
    assert 0.85 * estimate < measured < 1.15 * most, (measured, estimate, most)


@pytest.mark.parametrize(
    ("addressing_weight", "owner", "copies"), [(1.0, "micro-batch", 4), (0.0, "micro-batch", 0), (1.0, "sequence", 8)]
)
def test_moving_sub_keys_are_kept_once_per_chunk(single_process, addressing_weight, owner, copies):
    """Of every sequence where it owns its memory."""
    fwpkm = replace(BASE.fwpkm, addressing_weight=addressing_weight, owner=owner, reset="step")
    config = replace(BASE, fwpkm=fwpkm)
    kept = [tensor for tensor in keep(config) if tensor.shape == (2, 64, 32) and tensor.dtype == torch.float32]
    still = undo_log_bytes(replace(config, fwpkm=replace(config.fwpkm, addressing_weight=0.0)))
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept) == undo_log_bytes(config) - still
    assert len(kept) == copies


@pytest.mark.parametrize("undo_log", ["fp32", "recompute"])
def test_documents_keep_no_more_than_was_said(single_process, undo_log):
    """Starts that cut a chunk, that stand on its edge, and that leave a document of one token."""
    config = replace(BASE, fwpkm=replace(BASE.fwpkm, reset="document", num_subkeys=8, undo_log=undo_log))
    starts = (10, 64, 65, 200)
    kept = keep(config, starts)
    copies = sum(tensor.shape == (2, 8, 32) and tensor.dtype == torch.float32 for tensor in kept)
    assert copies == 2 * 4 + 3  # one start moves an edge and adds none
    most = undo_log_bytes(config) + len(starts) * document_start_bytes(config)
    estimate = activation_bytes(config, 512, 0)
    assert 0.85 * estimate < sum(tensor.untyped_storage().nbytes() for tensor in kept) < 1.15 * (estimate + most)


@pytest.mark.parametrize("bf16", [False, True])
def test_offloaded_activations_are_near_what_is_moved(single_process, bf16, monkeypatch):
    from megatron_fwpkm.models import offload

    moved, to_host = [], offload._to_host
    monkeypatch.setattr(offload, "_to_host", lambda tensor: moved.append(to_host(tensor)) or moved[-1])
    training = replace(BASE.training, bf16=bf16, cpu_offloading_num_layers=2)
    config = replace(BASE, fwpkm=replace(BASE.fwpkm, layer_numbers=()), training=training)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in keep(config))
    assert 0.85 * (estimate := activation_bytes(config, 512, 0)) < kept < 1.15 * estimate, (kept, estimate)
    found = estimate_memory(config, 512, 1).offloaded
    assert found < sum(one.copy.nbytes for one in moved) * 1.1 < 1.4 * found


def count_on_rank(rank: int, world_size: int, config: PretrainConfig) -> list[int]:
    """Parameters and table bytes that this rank really holds."""
    from megatron.core import parallel_state

    from megatron_fwpkm.distributed import megatron_on_cpu
    from megatron_fwpkm.models.builder import memory_layers

    megatron_on_cpu.install()
    parallel_state.initialize_model_parallel(config.parallel.tensor_model_parallel_size)
    model = build(config, 500)
    state = memory_layers(model)[0].fast_weights()
    return [
        sum(parameter.numel() for parameter in model.parameters()),
        sum(table.numel() * table.element_size() for table in (state.sub_keys, state.values)),
    ]


@pytest.mark.slow
def test_a_tensor_parallel_rank_holds_what_was_said():
    config = replace(
        BASE,
        model=replace(BASE.model, add_bias_linear=True, untie_embeddings_and_output_weights=True),
        parallel=ParallelConfig(tensor_model_parallel_size=2),
    )
    expected = [stage_parameters(config, 500, 0).on_rank(2), table_bytes(config, 2)]
    assert run_distributed(count_on_rank, 2, config, timeout=120) == [expected, expected]
