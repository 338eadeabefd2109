"""--rampup-batch-size: the number of sequences of every step, as Megatron's own calculator has it."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from megatron.core import num_microbatches_calculator

from megatron_fwpkm.config import TrainingConfig
from megatron_fwpkm.config.batch_schedule import samples_ahead, step_samples
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.validation import problems

RAMPS = [(2, 2, 40, 12), (4, 4, 100, 16), (8, 8, 7, 32), (2, 6, 1000, 20), (16, 16, 300, 1024)]


@pytest.mark.parametrize(("start", "increment", "samples", "full"), RAMPS)
def test_every_step_is_megatron_s(start: int, increment: int, samples: int, full: int) -> None:
    calculator = getattr(num_microbatches_calculator, "RampupBatchsizeNumMicroBatchesCalculator", None)
    if calculator is None:
        pytest.skip("this release of Megatron has no batches that grow")
    theirs = calculator(full, 1, 2, False, 1, start, increment, samples)
    training = TrainingConfig(rampup_batch_size=(start, increment, samples), global_batch_size=full)
    consumed, batches = 0, []
    for _ in range(300):
        theirs.update(consumed, consistency_check=True)
        batches.append(step_samples(training, full, consumed))
        assert batches[-1] == theirs.get_current_global_batch_size() == 2 * theirs.get()
        consumed += batches[-1]
    assert batches[0] == start and batches[-1] == full
    for done in (0, 1, 5, 100):
        for steps in (0, 1, 2, 7, 50, 200):
            ahead = samples_ahead(training, full, sum(batches[:done]), steps)
            assert ahead == sum(batches[done : done + steps]), (done, steps)


def test_without_a_ramp_all_steps_are_alike() -> None:
    assert step_samples(TrainingConfig(), 8, 100) == 8
    assert samples_ahead(TrainingConfig(), 8, 100, 10**12) == 8 * 10**12


def test_a_long_ramp_is_counted_at_once() -> None:
    begin = time.process_time()
    training = replace(TrainingConfig(), rampup_batch_size=(1, 1, 10**12))
    assert samples_ahead(training, 10_000, 0, 10**12) > 9.9e15
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--rampup-batch-size 2 2 40", "--rampup-batch-size 2 2 40 requires --global-batch-size, at which"),
        ("--rampup-batch-size 2 2 --global-batch-size 8", "--rampup-batch-size 2 2 must be three integers of at"),
        ("--rampup-batch-size 0 2 9 --global-batch-size 8", "--rampup-batch-size 0 2 9 must be three integers"),
        ("--rampup-batch-size 8 2 9 --global-batch-size 8", "8 2 9 does not reach --global-batch-size 8: START must"),
        ("--rampup-batch-size 2 4 9 --global-batch-size 8", "2 4 9 does not reach --global-batch-size 8: START must"),
        ("--rampup-batch-size 2 3 9 --global-batch-size 8 --micro-batch-size 2",
         "--rampup-batch-size 2 3 9: INCREMENT 3 is not divisible by 2, --micro-batch-size 2"),
        ("--rampup-batch-size 1 1 9 --global-batch-size 2000000000", "has 1999999999 increments, more than 10000"),
    ],
)  # fmt: skip
def test_a_ramp_that_cannot_be_is_refused(flags: str, said: str) -> None:
    found = problems(parse_pretrain(["--dry-run", *flags.split()]).config)
    assert any(re.search(re.escape(said), line) for line in found), found


def test_every_replica_needs_its_share_of_every_step() -> None:
    ramp = ["--rampup-batch-size", "2", "2", "8", "--global-batch-size", "8", "--micro-batch-size", "1"]
    config = parse_pretrain(["--dry-run", *ramp]).config
    assert problems(config, 2) == []
    assert len(problems(config, 4)) == 2
