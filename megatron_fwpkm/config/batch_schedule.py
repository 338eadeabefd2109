"""How many sequences a step has: --global-batch-size, reached in steps with --rampup-batch-size."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from .training import TrainingConfig

_MOST_INCREMENTS = 10_000


def step_samples(training: TrainingConfig, global_batch: int, consumed: int) -> int:
    """Sequences of the step that begins after `consumed` sequences of the run; `global_batch` is the full number.

    As in Megatron-LM: SAMPLES sequences are divided evenly among the increments from START to the full number.
    """
    if not training.rampup_batch_size:
        return global_batch
    start, increment, samples = training.rampup_batch_size
    if consumed > samples:
        return global_batch
    per_increment = samples / ((global_batch - start) // increment)
    return start + int(consumed / per_increment) * increment


def samples_ahead(training: TrainingConfig, global_batch: int, consumed: int, iterations: int) -> int:
    """Sequences that the next `iterations` steps take, where a run has consumed so many."""
    begin = consumed
    while iterations > 0:
        batch = step_samples(training, global_batch, consumed)
        steps = max(1, min(iterations, _steps_alike(training, global_batch, consumed, batch)))
        consumed += steps * batch
        iterations -= steps
    return consumed - begin


def _steps_alike(training: TrainingConfig, global_batch: int, consumed: int, batch: int) -> int:
    """At least so many of the next steps have the same number of sequences; may be below 1."""
    if not training.rampup_batch_size or consumed > training.rampup_batch_size[2]:
        return sys.maxsize
    start, increment, samples = training.rampup_batch_size
    per_increment = samples / ((global_batch - start) // increment)
    end = ((batch - start) // increment + 1) * per_increment
    return int((min(end, samples) - consumed) / batch) - 1


def rampup_problems(training: TrainingConfig, unit: int, interleaved_stages: int, replicas: int) -> Iterator[str]:
    """A sentence for every violated rule; `unit` is a micro-batch on every replica, and with an interleaved pipeline
    of so many stages (else 1) the micro-batches of a step are a multiple of their number."""
    if not training.rampup_batch_size:
        return
    given = f"--rampup-batch-size {' '.join(map(str, training.rampup_batch_size))}"
    if len(training.rampup_batch_size) != 3 or min(training.rampup_batch_size) < 1:
        yield f"{given} must be three integers of at least 1: START INCREMENT SAMPLES, as in 16 8 300000"
        return
    start, increment, _ = training.rampup_batch_size
    full = training.global_batch_size
    if full is None:
        yield f"{given} requires --global-batch-size, at which the ramp-up ends"
        return
    if start >= full or (full - start) % increment:
        yield (
            f"{given} does not reach --global-batch-size {full}: START must be below it, and INCREMENT must divide "
            "the difference"
        )
    elif (full - start) // increment > _MOST_INCREMENTS:
        yield f"{given} has {(full - start) // increment} increments, more than {_MOST_INCREMENTS}: raise INCREMENT"
    step = unit * interleaved_stages
    for name, value in (("START", start), ("INCREMENT", increment)):
        if value % step:
            stages = f" and {interleaved_stages} stages of an interleaved pipeline" if interleaved_stages > 1 else ""
            shared = f" times {replicas} data-parallel replicas" if replicas > 1 else ""
            yield (
                f"{given}: {name} {value} is not divisible by {step}, --micro-batch-size "
                f"{training.micro_batch_size}{shared}{stages}"
            )
