"""DeepSpeed's engine has the numbers of Megatron's, at every stage of ZeRO, with and without sequence parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engines.deepspeed_cases import numbers
from tests.spawned_ranks import run_distributed

BF16 = {"training": {"bf16": True}}
CONTEXT = {"parallel": {"context_parallel_size": 2}}
OPTIONS = {"optimizer": {"clip_grad": 0.0, "decoupled_lr": 2e-3}, "model": {"add_bias_linear": True}}
DROPOUT = {"model": {"hidden_dropout": 0.1, "untie_embeddings_and_output_weights": False}}


def compare(ranks: int, cases: list[dict[str, Any]], folder: Path, *, digits: float, steps: int = 4) -> None:
    """The first case against every other: losses, norms and evaluation to `digits`, learning rates exactly."""
    found = run_distributed(numbers, ranks, cases, str(folder), steps, timeout=280)[0]
    wanted, evaluated = found[0]
    for case, (taken, also_evaluated) in zip(cases[1:], found[1:], strict=True):
        for step, (one, other) in enumerate(zip(wanted, taken, strict=True)):
            assert other[:2] == pytest.approx(one[:2], rel=digits), (case, step)
            assert other[2] == one[2], (case, step)
        assert also_evaluated.loss == pytest.approx(evaluated.loss, rel=digits), case


@pytest.mark.slow
def test_zero_has_megatrons_numbers_at_tensor_parallel_size_2(tmp_path: Path) -> None:
    """The short form: stages 1 and 3 with sequence shards, whose gradients DeepSpeed alone would not sum."""
    cases = [{"tp": 2, "sp": True, "stage": stage} for stage in (None, 1, 3)]
    compare(2, cases, tmp_path, digits=5e-6)


@pytest.mark.slow
@pytest.mark.layouts
@pytest.mark.parametrize("sp", [False, True])
def test_every_stage_has_megatrons_numbers_at_tp2_dp2(tmp_path: Path, sp: bool) -> None:
    cases = [{"tp": 2, "sp": sp, "stage": stage} for stage in (None, 0, 1, 2, 3)]
    compare(4, cases, tmp_path, digits=5e-6)


@pytest.mark.slow
@pytest.mark.layouts
@pytest.mark.parametrize(("options", "digits"), [(OPTIONS, 5e-6), (CONTEXT, 5e-6), (DROPOUT, 5e-6), (BF16, 5e-3)])
def test_options_mean_the_same_at_dp2(tmp_path: Path, options: dict[str, Any], digits: float) -> None:
    """Without clipping the norm is measured, too. In bfloat16 a last bit that rounds otherwise grows with the steps."""
    cases = [{"stage": stage, **options} for stage in (None, 1, 2, 3)]
    compare(2, cases, tmp_path, digits=digits, steps=2 if options is BF16 else 4)
