"""Bytes that a run's checkpoints take on disk, before anything runs. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from .deepspeed_options import sharding_stage
from .derived import data_parallel_size, stage_layers
from .memories import fast_weight_bytes, memory_numbers
from .parameter_counts import num_parameters, stage_parameters
from .pretrain import PretrainConfig
from .saved_replicas import averaged_after, replicas_to_save


@dataclass(frozen=True)
class CheckpointBytes:
    """Bytes of one checkpoint, without what does not grow with the model (random states, tokenizer, file headers)."""

    weights: int
    optimizer: int
    fast_weights: int
    """Of all replicas whose memories are saved."""
    replicas: int
    """Number of those replicas."""
    largest_rank: int
    """Bytes written by the rank that writes the most."""

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.optimizer + self.fast_weights


def checkpoint_bytes(
    config: PretrainConfig, vocab_size: int, world_size: int, iteration: int | None = None
) -> CheckpointBytes:
    """Bytes of one checkpoint of a run of `world_size` processes; `vocab_size` is the tokenizer's.

    Slow weights and optimizer are written once, by the ranks of the first replica; every replica writes its tables, if
    --fwpkm-save-replicas does not leave them out. `iteration` is that of the save, by default of the largest one.
    """
    parallel = config.parallel
    tensor = parallel.tensor_model_parallel_size
    weight, state = _bytes_per_parameter(config)
    parameters = num_parameters(config, vocab_size)
    replicas = _saving_replicas(config, world_size, iteration)
    largest = 0
    for stage in range(parallel.pipeline_model_parallel_size):
        own = stage_parameters(config, vocab_size, stage).on_rank(tensor) * (weight + state)
        ranks = tensor * parallel.context_parallel_size
        largest = max(largest, own + fast_weight_bytes(config, stage_layers(config, stage), ranks))
    return CheckpointBytes(
        weights=parameters * weight,
        optimizer=parameters * state,
        fast_weights=fast_weight_bytes(config, memory_numbers(config)) * replicas,
        replicas=replicas,
        largest_rank=largest,
    )


def _saving_replicas(config: PretrainConfig, world_size: int, iteration: int | None) -> int:
    """Replicas whose memories are saved after an iteration: one if they are averaged then."""
    regular = (config.checkpoint.save_interval or config.training.train_iters, config.training.train_iters)
    saves = regular if iteration is None else (iteration,)
    if all(averaged_after(config.fwpkm, number) for number in saves):
        return 1
    return len(replicas_to_save(config.fwpkm, data_parallel_size(config, world_size)))


def _bytes_per_parameter(config: PretrainConfig) -> tuple[int, int]:
    """Bytes of a slow weight, and of what the optimizer keeps for it.

    That is two moments, and a float32 copy of bf16 weights; a distributed optimizer also saves a copy of fp32 weights.
    """
    stage_of_zero = sharding_stage(config)
    copied = config.training.bf16 or stage_of_zero > 0
    weight = 2 if config.training.bf16 else 4
    # DeepSpeed's own files have the weights, too, but for those of ZeRO-3, which are the float32 copies.
    again = config.engine.engine == "deepspeed" and stage_of_zero < 3
    return 2 * weight if again else weight, 12 if copied else 8


def checkpoints_on_disk(config: PretrainConfig) -> int:
    """The most checkpoints that an uninterrupted run has in --save at once, including the one being written."""
    last, interval = config.training.train_iters, config.checkpoint.save_interval
    saved = {*range(interval, last + 1, interval), last} if interval is not None else {last}
    keep, retain = config.checkpoint.keep_last, config.checkpoint.save_retain_interval
    if keep == 0:
        return len(saved)
    retained = sum(iteration % retain == 0 for iteration in sorted(saved)[: -keep - 1]) if retain is not None else 0
    return min(len(saved), keep + 1 + retained)
