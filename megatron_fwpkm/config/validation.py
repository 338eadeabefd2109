"""Rules between options, checked at start-up; every message names flags, values and what to do (DESIGN section 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields

from .activation_rules import activation_problems
from .batch_schedule import rampup_problems
from .checkpoint_rules import checkpoint_problems
from .chunk_rules import chunk_problems
from .data_rules import data_problems
from .derived import data_parallel_size, num_query_groups, replica_size
from .engine_rules import engine_problems
from .fault_rules import fault_problems
from .field_metadata import values_out_of_range
from .implementation_rules import implementation_problems
from .layer_kinds import kinds_in_use
from .layer_pattern import pattern_problems, window_problems
from .library_rules import library_problems
from .loading import PREFIXES
from .memories import memory_kinds
from .memory_rules import memory_problems
from .neighbours import near_divisors, near_multiples
from .pkm_rules import pkm_problems
from .position_rules import position_problems
from .pretrain import PretrainConfig
from .profiling import profiling_problems
from .pswa import pswa_problems
from .schedule_rules import schedule_problems
from .size_rules import size_problems
from .training_rules import training_problems


def validate(config: PretrainConfig, world_size: int | None = None) -> None:
    """Check a configuration, for `world_size` processes where that is known.

    With --dry-run data and tokenizer may be missing. Raises ValueError with every problem: one line for one, a list for
    several.
    """
    found = problems(config, world_size)
    if len(found) == 1:
        raise ValueError(found[0])
    if found:
        raise ValueError(f"{len(found)} problems in the configuration:" + "".join(f"\n  - {line}" for line in found))


def problems(config: PretrainConfig, world_size: int | None = None) -> list[str]:
    """Every violated rule in a sentence; rules between options are looked at once each value alone is in its range."""
    alone = [
        line
        for group in fields(config)
        for line in values_out_of_range(getattr(config, group.name), PREFIXES.get(group.name, ""))
    ]
    alone += pattern_problems(config.model)
    if alone:
        return alone
    rules: tuple[Callable[[PretrainConfig], Iterator[str]], ...] = (
        _attention, position_problems, _windows, memory_problems, pkm_problems, _layout, _pipeline, _context, _kinds,
        activation_problems, training_problems, library_problems, implementation_problems, schedule_problems,
        data_problems, checkpoint_problems, fault_problems,
    )  # fmt: skip
    found = [line for rule in rules for line in rule(config)]
    fits = world_size is not None and world_size % replica_size(config) == 0
    found += engine_problems(config, data_parallel_size(config, world_size) if fits and world_size else None)
    if not found:
        found = list(size_problems(config))
    found += _batch(config, world_size)
    return [*found, *chunk_problems(config, world_size), *profiling_problems(config, world_size)]


def _kinds(config: PretrainConfig) -> Iterator[str]:
    """What a kind of layer cannot do."""
    context = config.parallel.context_parallel_size
    for kind in kinds_in_use(config):
        yield from kind.problems(config)
        if context > 1 and not kind.context_parallel:
            yield (
                f"{kind.role.value} {kind.name} does not support --context-parallel-size {context}: use "
                "--context-parallel-size 1"
            )
        if config.data.reset_attention_mask and not kind.separates_documents:
            yield (
                f"{kind.role.value} {kind.name} does not support --reset-attention-mask: use "
                "--no-reset-attention-mask"
            )


def _attention(config: PretrainConfig) -> Iterator[str]:
    model = config.model
    if model.kv_channels is None and model.hidden_size % model.num_attention_heads:
        yield (
            f"--hidden-size {model.hidden_size} is not divisible by --num-attention-heads "
            f"{model.num_attention_heads}: use --hidden-size "
            f"{near_multiples(model.hidden_size, model.num_attention_heads)}, or give --kv-channels"
        )
        return
    groups = num_query_groups(model)
    if model.num_attention_heads % groups:
        yield (
            f"--num-query-groups {groups} must divide --num-attention-heads {model.num_attention_heads}: use "
            f"{near_divisors(groups, model.num_attention_heads)}"
        )


def _windows(config: PretrainConfig) -> Iterator[str]:
    yield from window_problems(config.model, config.fwpkm.pswa_probability > 0)
    yield from pswa_problems(config)


def _layout(config: PretrainConfig) -> Iterator[str]:
    parallel, model = config.parallel, config.model
    tensor = parallel.tensor_model_parallel_size
    divided: dict[str, int] = {}
    for kind in kinds_in_use(config):
        divided |= kind.divided(config)
    if parallel.sequence_parallel:
        divided["--seq-length"] = model.seq_length
    wrong = {flag: value for flag, value in divided.items() if value % tensor}
    if wrong:
        named = " and ".join(f"{flag} {value} (near: {near_multiples(value, tensor)})" for flag, value in wrong.items())
        yield (
            f"--tensor-model-parallel-size {tensor} does not divide {named}: use a tensor-parallel size of "
            f"{near_divisors(tensor, math.gcd(*divided.values()))}, which divides everything, or change the sizes"
        )
    if parallel.sequence_parallel and tensor == 1:
        yield "--sequence-parallel requires --tensor-model-parallel-size of at least 2"


def _pipeline(config: PretrainConfig) -> Iterator[str]:
    layers, stages = config.model.num_layers, config.parallel.pipeline_model_parallel_size
    chunks = config.parallel.num_virtual_stages_per_pipeline_rank
    if layers % stages:
        yield (
            f"--pipeline-model-parallel-size {stages} does not divide --num-layers {layers}: use "
            f"{near_divisors(stages, layers)} stages"
        )
    elif chunks > 1 and stages == 1:
        yield (
            f"--num-virtual-stages-per-pipeline-rank {chunks} requires "
            "--pipeline-model-parallel-size of at least 2"
        )
    elif layers // stages % chunks:
        yield (
            f"--num-virtual-stages-per-pipeline-rank {chunks} does not divide the {layers // stages} layers of a stage "
            f"(--num-layers {layers} over {stages} stages): use {near_divisors(chunks, layers // stages)}"
        )


def _context(config: PretrainConfig) -> Iterator[str]:
    parallel, model = config.parallel, config.model
    context, tensor = parallel.context_parallel_size, parallel.tensor_model_parallel_size
    if context == 1:
        return
    # Megatron gives every rank two pieces of a sequence, so that causal attention costs all of them the same.
    pieces = 2 * context * (tensor if parallel.sequence_parallel else 1)
    if model.seq_length % pieces:
        yield (
            f"--seq-length {model.seq_length} is not divisible by the {pieces} pieces that --context-parallel-size "
            f"{context} cuts it into: use --seq-length {near_multiples(model.seq_length, pieces)}"
        )
    ranks = tensor * context
    shared = [item for memory in memory_kinds(config) for item in memory.fast.shared(config).items()]
    for flag, value in shared:
        if value % ranks:
            yield (
                f"{flag} {value} is not divisible by --tensor-model-parallel-size {tensor} times "
                f"--context-parallel-size {context}: use {near_multiples(value, ranks)}"
            )


def _batch(config: PretrainConfig, world_size: int | None) -> Iterator[str]:
    training, parallel = config.training, config.parallel
    replica, replicas = replica_size(config), 1
    if world_size is not None:
        if world_size % replica:
            yield (
                f"the number of processes, {world_size}, is not divisible by --tensor-model-parallel-size "
                f"{parallel.tensor_model_parallel_size} times --pipeline-model-parallel-size "
                f"{parallel.pipeline_model_parallel_size}{_context_factor(config)}: start "
                f"{near_multiples(world_size, replica)}"
            )
            return
        replicas = world_size // replica
    batch, unit = training.global_batch_size, training.micro_batch_size * replicas
    if batch is not None and batch % unit:
        shared = f"--micro-batch-size {training.micro_batch_size}"
        if replicas > 1:
            shared += f" times {replicas} data-parallel replicas"
        yield f"--global-batch-size {batch} is not divisible by {shared}: use {near_multiples(batch, unit)}"
        return
    stages, interleaved = parallel.pipeline_model_parallel_size, parallel.num_virtual_stages_per_pipeline_rank > 1
    yield from rampup_problems(training, unit, stages if interleaved else 1, replicas)
    micro_batches = (batch or unit) // unit
    if interleaved and micro_batches % stages and world_size is not None:
        yield (
            f"the number of micro-batches per step, {micro_batches}, is not divisible by "
            f"--pipeline-model-parallel-size {stages}, as an interleaved pipeline requires: use --global-batch-size "
            f"{near_multiples(micro_batches * unit, stages * unit)}"
        )


def _context_factor(config: PretrainConfig) -> str:
    """` times --context-parallel-size 2` where there is one."""
    size = config.parallel.context_parallel_size
    return f" times --context-parallel-size {size}" if size > 1 else ""
