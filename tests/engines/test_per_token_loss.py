"""--calculate-per-token-loss: every token of a step weighs the same; --grad-reduce-in-bf16: what the gradients are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.engines.megatron_groups import megatron_run
from tests.engines.test_engine import BASE, VOCABULARY, batches, change
from tests.spawned_ranks import run_distributed
from tests.training.double_precision import double_precision

STEPS = 3


def configured(micro_batch: int, per_token: bool, **parallel: Any) -> PretrainConfig:
    """Without memories, which know how a step is cut into micro-batches, and without dropout."""
    config = change(BASE, "training", micro_batch_size=micro_batch, calculate_per_token_loss=per_token)
    config = change(config, "fwpkm", layer_numbers=())
    config = change(config, "model", hidden_dropout=0.0, attention_dropout=0.0)
    return change(config, "parallel", **parallel)


def masked(start: int, replica: int, replicas: int, micro_batch: int) -> Iterator[dict[str, torch.Tensor]]:
    """Sequence n leaves 5 n modulo 20 of its 24 tokens out; those of a replica come as in the run's order."""
    number, numbered = start, enumerate(batches(start))
    while True:
        rows = []
        for position, batch in numbered:
            mask = batch["loss_mask"].clone()
            mask[:, : 5 * position % 20] = 0.0
            rows.append(batch | {"loss_mask": mask})
            if len(rows) == micro_batch:
                break
        if number % replicas == replica:
            yield {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        number += 1


def trained(config: PretrainConfig) -> tuple[list[tuple[float, float, float]], dict[str, torch.Tensor]]:
    """(loss, plain loss, gradient norm) of every step, and the weights after the last."""
    from megatron_fwpkm.engines.megatron import MegatronEngine

    with double_precision(), megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        source = masked(0, world.rank, world.size, config.training.micro_batch_size)
        results = [engine.train_step(source) for _ in range(STEPS)]
        weights = {name: p.detach().clone() for name, p in engine.chunks[0].named_parameters()}
        return [(step.losses.loss, step.losses.lm_loss, step.grad_norm) for step in results], weights


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(torch.tensor(one[0]), torch.tensor(other[0]), rtol=1e-10, atol=1e-10)
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=0, atol=1e-10)


def test_four_micro_batches_are_one_of_four_sequences() -> None:
    """One micro-batch of all four sequences divides by the number of all tokens: an independent reference."""
    reference = trained(configured(4, False))
    assert_same(trained(configured(1, True)), reference)
    assert_same(trained(configured(2, True)), reference)
    usual = trained(configured(1, False))
    assert abs(usual[0][0][0] - reference[0][0][0]) > 1e-4, "the masks make no difference"


def two_replicas(rank: int, world_size: int) -> Any:
    return [trained(configured(1, True, **more)) for more in ({}, {"use_distributed_optimizer": True})]


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_compat")
def test_two_replicas_weigh_tokens_alike() -> None:
    reference = trained(configured(4, False))
    for found in run_distributed(two_replicas, 2, timeout=120):
        for one in found:
            assert_same(one, reference)


@pytest.mark.slow
@pytest.mark.parametrize("distributed", [False, True])
def test_gradients_are_kept_in_bfloat16(distributed: bool, tmp_path: Path) -> None:
    from megatron_fwpkm.engines.megatron import MegatronEngine

    found = {}
    for reduced in (False, True):
        config = change(BASE, "training", bf16=True)
        config = change(config, "parallel", grad_reduce_in_bf16=reduced, use_distributed_optimizer=distributed)
        with megatron_run(config.parallel, config.training) as world:
            engine = MegatronEngine(config, VOCABULARY, world.device)
            buffers = engine.chunks[0].buffers
            wide = [buffer.grad_data.dtype for buffer in buffers if buffer.param_dtype == torch.bfloat16]
            assert wide and set(wide) == {torch.bfloat16 if reduced else torch.float32}
            step = engine.train_step(batches(0))
            weight = next(engine.chunks[0].parameters()).main_grad
            assert weight.dtype == (torch.bfloat16 if reduced else torch.float32)
            found[reduced] = step
    assert found[True].losses == found[False].losses
    assert found[True].grad_norm == pytest.approx(found[False].grad_norm, rel=0.02)
    assert found[True].grad_norm != found[False].grad_norm
