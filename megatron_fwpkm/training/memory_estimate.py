"""Bytes that a rank needs, before anything runs: exact for what is stored, estimated for what lives within a step.

Weights, gradients, optimizer states and tables follow from the shapes. Activations are an estimate of what autograd
saves for this model on torch's own attention (tests compare it with a measurement); the undo log is given at its upper
bound. `python -m benchmarks.run memory_estimate` compares all together with the peak of whole runs on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import PretrainConfig
from ..config.cuda_graph_rules import cuda_graph_bytes
from ..config.deepspeed_options import sharding_stage
from ..config.derived import (
    chunk_layers,
    data_parallel_size,
    embedding_rows,
    micro_batches_in_flight,
    stage_layers,
)
from ..config.layer_kind import LAYER_KINDS
from ..config.layer_kinds import LayerParts, count_parts
from ..config.memories import fast_weight_bytes, is_reset, memories_of, memory_kinds
from ..config.parameter_counts import stage_parameters

PROCESS_BYTES = 420 * 2**20
"""Of a process on the CPU before it has a model: Python, torch, Megatron and what they load until the first step ends.

Measured with a model of next to no size (`python -m benchmarks.run memory_estimate`, torch 2.13). On a GPU the host has
it, too, and the device a CUDA context instead, which is not estimated."""
_MOST_BYTES = 2**44
"""More than any machine holds for one rank."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank of a pipeline stage."""

    weights: int
    gradients: int
    optimizer: int
    tables: int
    undo_log: int
    """At most: fast weights that the micro-batches in flight overwrite, and what a reset needs.

    Without what documents add that start inside a sequence (`FastWeights.document_bytes`)."""
    activations: int
    """About: what autograd keeps for the micro-batches in flight."""
    temporaries: int
    """About: what operations need beyond that at the fullest moment of a step (`_temporary_bytes`)."""
    graphs: int
    """About: what the CUDA graphs of the memories keep beyond their undo logs and activations."""
    offloaded: int
    """About: activations that wait in host memory instead; not part of the total."""

    @property
    def total(self) -> int:
        """Everything on the device together, without the process."""
        stored = self.weights + self.gradients + self.optimizer + self.tables
        return stored + self.undo_log + self.activations + self.temporaries + self.graphs

    @property
    def resident(self) -> int:
        """Resident memory of a process that trains on the CPU."""
        return self.total + PROCESS_BYTES


def estimate_memory(config: PretrainConfig, vocab_size: int, world_size: int, stage: int = 0) -> MemoryEstimate:
    """Bytes on every rank of pipeline stage `stage` in a run of `world_size` processes.

    `vocab_size` is the tokenizer's. With bf16, AdamW keeps a float32 copy of the weights beside its two moments.
    """
    parallel, bf16 = config.parallel, config.training.bf16
    tensor, replicas = parallel.tensor_model_parallel_size, data_parallel_size(config, world_size)
    parameters = stage_parameters(config, vocab_size, stage).on_rank(tensor)
    context, stage_of_zero = parallel.context_parallel_size, sharding_stage(config)
    # DeepSpeed keeps a float32 copy of what it shards also beside float32 weights.
    copied = bf16 or (config.engine.engine == "deepspeed" and stage_of_zero > 0)

    def shared(count: int, least: int) -> int:
        """This rank's part of what ZeRO shards from stage `least` on."""
        return -(-count // (replicas * context)) if stage_of_zero >= least else count

    memories = memories_of(config, stage_layers(config, stage))
    in_flight = micro_batches_in_flight(config, replicas, stage)
    undo_log = sum(round(in_flight * m.kept_bytes(config)) + m.beside_bytes(config, replicas) for m in memories)
    activations = round(in_flight * activation_bytes(config, vocab_size, stage)) + _passing_bytes(config, stage)
    return MemoryEstimate(
        weights=shared(parameters * (2 if bf16 else 4), 3),
        gradients=shared(parameters * (2 if parallel.grad_reduce_in_bf16 else 4), 2),
        optimizer=shared(parameters * (12 if copied else 8), 1),
        tables=fast_weight_bytes(config, stage_layers(config, stage), tensor * context),
        undo_log=undo_log + max((memory.passing_bytes(config) for memory in memories), default=0),
        activations=activations,
        temporaries=_temporary_bytes(config, vocab_size, stage, activations),
        graphs=cuda_graph_bytes(config, replicas, stage) * len(memories),
        offloaded=round(in_flight * offloaded_bytes(config, stage)),
    )


def _temporary_bytes(config: PretrainConfig, vocab_size: int, stage: int, activations: int) -> int:
    """What the fullest moment of a step needs beyond `activations`.

    That is the beginning of the backward pass, with the gradient of the output weights and, in bf16, another copy of
    the logits; where activations are few, its end or the optimizer's step, which need twice the largest weight (tied
    embeddings have two gradients then, AdamW two intermediate results).
    """
    model, parallel, size = config.model, config.parallel, 2 if config.training.bf16 else 4
    last = parallel.pipeline_model_parallel_size - 1
    rows = embedding_rows(config, vocab_size) // parallel.tensor_model_parallel_size
    embedding = rows * model.hidden_size if stage in (0, last) else 0
    beginning = size * embedding if stage == last else 0
    if stage == last and config.training.bf16:
        beginning += size * _own_tokens(config) * rows
    kinds = {name for parts in count_parts(config, stage_layers(config, stage)) for name in parts.names}
    largest = max(embedding, *(LAYER_KINDS[name].largest_weight(config) for name in kinds))
    return max(beginning, 2 * 4 * largest - activations)


def check_tables_fit(config: PretrainConfig, room: int, replicas: int = 1) -> None:
    """Raise ValueError if the tables of a stage's memories need more than the `room` bytes of a device.

    So too where that is true of the tables and of what puts them back together.
    """
    ranks = config.parallel.tensor_model_parallel_size * config.parallel.context_parallel_size
    stages = [stage_layers(config, stage) for stage in range(config.parallel.pipeline_model_parallel_size)]
    wanted = max(fast_weight_bytes(config, layers, ranks) for layers in stages)
    if wanted > room:
        made = " and ".join(memory.fast.made_by(config) for memory in memory_kinds(config))
        raise ValueError(
            f"the fast-weight tables need {format_bytes(wanted)} on each rank, but the device has only "
            f"{format_bytes(room)}: reduce {made}, or shard the tables over more ranks with "
            "--tensor-model-parallel-size; --dry-run shows the memory per rank"
        )
    journals = [sum(m.beside_bytes(config, replicas) for m in memories_of(config, layers)) for layers in stages]
    if (config.faults.on_nan == "skip" or is_reset(config, "step")) and wanted + max(journals) > room:
        raise ValueError(
            f"the fast-weight tables need {format_bytes(wanted)} on each rank and what --fwpkm-reset step and --on-nan "
            f"skip put back {format_bytes(max(journals))} more, but the device has only {format_bytes(room)}: choose "
            "another --fwpkm-reset or --on-nan, or reduce --global-batch-size; --dry-run shows the memory per rank"
        )


def check_step_fits(config: PretrainConfig, vocab_size: int, world_size: int) -> None:
    """Raise ValueError if a step keeps more for its backward pass than any machine has.

    The figure is an estimate, so only the first step shows whether the device at hand has enough.
    """
    first_and_last = sorted({0, config.parallel.pipeline_model_parallel_size - 1})
    found = [estimate_memory(config, vocab_size, world_size, stage) for stage in first_and_last]
    wanted = max(one.activations + one.offloaded + one.undo_log for one in found)
    if wanted > _MOST_BYTES:
        raise ValueError(
            f"--micro-batch-size {config.training.micro_batch_size} and --seq-length {config.model.seq_length} need "
            f"{format_bytes(wanted)} on a rank for activations and undo log, more than the limit of "
            f"{format_bytes(_MOST_BYTES)}: reduce them, or increase --context-parallel-size"
        )


def format_bytes(count: int) -> str:
    """`512 B`, `1.5 MiB`."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{count} B" if units[0] == "B" else f"{value:,.1f} {units[0]}"


def activation_bytes(config: PretrainConfig, vocab_size: int, stage: int) -> int:
    """About what autograd saves for one micro-batch on a rank of a stage, without undo logs.

    A context-parallel rank keeps the activations of its own tokens, and of all tokens what its kinds of layers declare.
    """
    model, parallel = config.model, config.parallel
    tensor, size = parallel.tensor_model_parallel_size, 2 if config.training.bf16 else 4
    layers = stage_layers(config, stage)
    elsewhere = {*_recomputed_layers(config, stage), *_offloaded_layers(config, stage)}
    own = size * model.hidden_size // (tensor if parallel.sequence_parallel else 1) * _recompute_units(config, stage)
    for parts, count in count_parts(config, layers).items():
        own += count * memory_bytes_per_token(config, parts)
    for parts, count in count_parts(config, (number for number in layers if number not in elsewhere)).items():
        own += count * layer_bytes_per_token(config, parts)
    if stage == parallel.pipeline_model_parallel_size - 1:
        vocabulary = embedding_rows(config, vocab_size)
        # The loss works in float32 on whole rows of logits.
        own += 4 * vocabulary // tensor + (8 + size) * model.hidden_size
    return _own_tokens(config) * own


def offloaded_bytes(config: PretrainConfig, stage: int) -> int:
    """About what layers keep in host memory for one micro-batch on a rank of a stage.

    A tensor that two operations save is stored twice, which adds up to a quarter.
    """
    parts = count_parts(config, _offloaded_layers(config, stage))
    return _own_tokens(config) * sum(count * layer_bytes_per_token(config, one) for one, count in parts.items())


def layer_bytes_per_token(config: PretrainConfig, parts: LayerParts) -> int:
    """Bytes that a layer without its memory saves for one of a rank's tokens."""
    model, parallel = config.model, config.parallel
    tensor, size = parallel.tensor_model_parallel_size, 2 if config.training.bf16 else 4
    inside = LAYER_KINDS[parts.mixer].activation_bytes(config) + LAYER_KINDS[parts.mlp].activation_bytes(config)
    shared = (16 + 2 * size) * model.hidden_size
    return inside.on_rank(tensor) + (shared // tensor if parallel.sequence_parallel else shared)


def memory_bytes_per_token(config: PretrainConfig, parts: LayerParts) -> int:
    """Bytes that the memory of a layer saves for one of a rank's tokens; 0 where there is none."""
    if parts.memory is None:
        return 0
    return LAYER_KINDS[parts.memory].activation_bytes(config).on_rank(config.parallel.tensor_model_parallel_size)


def _recomputed_layers(config: PretrainConfig, stage: int) -> tuple[int, ...]:
    """Layers of a stage that only keep their inputs."""
    training = config.training
    if training.recompute_granularity != "full":
        return ()
    if training.recompute_method == "uniform":
        return stage_layers(config, stage)
    return _first_of_chunks(config, stage, training.recompute_num_layers or 0)


def _offloaded_layers(config: PretrainConfig, stage: int) -> tuple[int, ...]:
    """Layers of a stage whose activations wait on the host."""
    return _first_of_chunks(config, stage, config.training.cpu_offloading_num_layers)


def _first_of_chunks(config: PretrainConfig, stage: int, count: int) -> tuple[int, ...]:
    """The first `count` layers of every model chunk of a stage."""
    return tuple(number for number in stage_layers(config, stage) if (number - 1) % chunk_layers(config) < count)


def _recompute_units(config: PretrainConfig, stage: int) -> int:
    """Most inputs that full recomputation keeps: a unit ends before a memory."""
    recomputed, training = len(_recomputed_layers(config, stage)), config.training
    if not recomputed or training.recompute_method == "block":
        return recomputed
    memories = len(memories_of(config, stage_layers(config, stage)))
    return min(recomputed, -(-recomputed // (training.recompute_num_layers or 1)) + memories)


def _passing_bytes(config: PretrainConfig, stage: int) -> int:
    """Temporary activations of one unit of layers: recomputed for its backward pass, or on their way to the host."""
    training = config.training
    passing = count_parts(config, {*_recomputed_layers(config, stage), *_offloaded_layers(config, stage)})
    layers = (training.recompute_num_layers or 1) if training.recompute_method == "uniform" else 1
    largest = max((layer_bytes_per_token(config, parts) for parts in passing), default=0)
    return _own_tokens(config) * layers * largest


def _own_tokens(config: PretrainConfig) -> int:
    """Tokens of a micro-batch whose activations a rank computes."""
    return config.training.micro_batch_size * config.model.seq_length // config.parallel.context_parallel_size
