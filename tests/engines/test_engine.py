"""Engine and checkpoints on a small real model: 8 steps = 4 + resume + 4, bit for bit; evaluation leaves no trace."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import (
    CheckpointConfig,
    DataConfig,
    FwPKMConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    TrainingConfig,
)
from megatron_fwpkm.engines.megatron_groups import megatron_run

VOCABULARY = 96
BASE = PretrainConfig(
    model=ModelConfig(
        num_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        num_query_groups=1,
        seq_length=24,
        hidden_dropout=0.1,
        attention_dropout=0.1,
    ),
    fwpkm=FwPKMConfig(layer_numbers=(2,), num_subkeys=4, key_dim=8, value_dim=8, topk=2, chunk_size=8),
    optimizer=OptimizerConfig(lr=1e-2, lr_warmup_iters=2),
    data=DataConfig(tokenizer_type="NullTokenizer", vocab_size=VOCABULARY - 1),
    training=TrainingConfig(train_iters=8, micro_batch_size=1, global_batch_size=4, eval_iters=0, num_threads=1),
    checkpoint=CheckpointConfig(save="unused"),
)


def batches(start: int, replica: int = 0, replicas: int = 1) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-batches of one sequence; number n of the run goes to replica n modulo replicas."""
    number = start + replica
    while True:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(0, VOCABULARY - 1, (1, 25), generator=generator)
        yield {
            "tokens": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "loss_mask": torch.ones(1, 24),
            "position_ids": torch.arange(24)[None],
            "document_starts": tokens[:, :-1] < 8,
        }
        number += replicas


def change(config: PretrainConfig, group: str, **values: Any) -> PretrainConfig:
    return replace(config, **{group: replace(getattr(config, group), **values)})


def state_of(engine: Any) -> dict[str, torch.Tensor]:
    """Everything a run carries: weights, float32 copies, moments, steps, tables."""
    found = {
        f"model/{number}/{name}": p.detach().clone()
        for number, chunk in enumerate(engine.chunks)
        for name, p in chunk.named_parameters()
    }
    for number, part in enumerate(engine.optimizer.chained_optimizers):
        for group, parameters in enumerate(g["params"] for g in part.optimizer.param_groups):
            for index, parameter in enumerate(parameters):
                key = f"optimizer/{number}/{group}/{index}"
                found[f"{key}/main"] = parameter.detach().clone()
                for name, value in part.optimizer.state[parameter].items():
                    found[f"{key}/{name}"] = value.clone()
    for memory in engine.memories:
        for name, table in memory.fast_weights().tables().items():
            found[f"memory/{memory.layer_number}/{name}"] = table.clone()
    return found


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


def halves_equal_the_whole(config: PretrainConfig, folder: Path) -> list[float]:
    """8 steps at once, and 4 + save + load in a new engine + 4: asserts equality, returns the losses."""
    from megatron.core import parallel_state

    from megatron_fwpkm.checkpoint.rng import load_rng_state, save_rng_state
    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import set_seeds

    with megatron_run(config.parallel, config.training) as world:
        replica = parallel_state.get_data_parallel_rank()
        replicas = parallel_state.get_data_parallel_world_size()

        def steps(engine: MegatronEngine, first: int, count: int) -> list[Any]:
            source = batches(4 * first, replica, replicas)
            return [engine.train_step(source) for _ in range(count)]

        engine = MegatronEngine(config, VOCABULARY, world.device)
        whole = steps(engine, 0, 4)
        if world.is_main:
            folder.mkdir()
        if world.size > 1:
            torch.distributed.barrier()
        engine.save(folder)
        save_rng_state(folder, world.rank, engine.random_state())
        whole += steps(engine, 4, 4)
        final = state_of(engine)
        set_seeds(99)  # the new engine must owe nothing to the old one's generators
        again = MegatronEngine(config, VOCABULARY, world.device)
        assert again.load(folder, weights_only=False) == []
        again.set_random_state(load_rng_state(folder, world.rank))
        assert steps(again, 4, 4) == whole[4:]
        assert_same_state(state_of(again), final)
        assert all(math.isfinite(result.losses.loss) for result in whole)
        return [result.losses.loss for result in whole]


@pytest.mark.parametrize(
    ("bf16", "distributed_optimizer", "memory"),
    [
        pytest.param(False, False, {}, marks=pytest.mark.slow),
        pytest.param(True, False, {"reset": "step", "table_dtype": "bf16"}, marks=pytest.mark.slow),
        (False, True, {"reset": "step", "owner": "sequence", "table_dtype": "bf16"}),
        pytest.param(True, True, {}, marks=pytest.mark.slow),
        pytest.param(False, False, {"table_dtype": "bf16"}, marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_for_bit(tmp_path: Path, bf16: bool, distributed_optimizer: bool, memory: dict[str, str]) -> None:
    config = change(BASE, "training", bf16=bf16)
    config = change(config, "parallel", use_distributed_optimizer=distributed_optimizer)
    config = change(config, "fwpkm", **memory)
    losses = halves_equal_the_whole(config, tmp_path / "checkpoint")
    assert losses[0] == pytest.approx(math.log(VOCABULARY), rel=0.05)


def test_evaluation_leaves_no_trace_and_repeats_itself() -> None:
    from megatron_fwpkm.engines.megatron import MegatronEngine

    with megatron_run(BASE.parallel, BASE.training) as world:
        engine = MegatronEngine(BASE, VOCABULARY, world.device)
        engine.train_step(batches(0))
        before, generator = state_of(engine), torch.get_rng_state()
        first = engine.evaluate(batches(100), 2)
        assert_same_state(state_of(engine), before)
        assert torch.equal(torch.get_rng_state(), generator)
        assert engine.evaluate(batches(100), 2) == first
        assert engine.evaluate(batches(200), 2) != first
        answers = iter([False, True])
        assert engine.evaluate(batches(200), 9, stop=lambda: next(answers)) is None
        assert_same_state(state_of(engine), before)
        assert engine.chunks[0].training


@pytest.mark.parametrize(
    ("reset", "owner"), [("step", "micro-batch"), ("step", "sequence"), ("document", "micro-batch")]
)
def test_reset_puts_the_initial_memory_back(reset: str, owner: str) -> None:
    from megatron_fwpkm.engines.megatron import MegatronEngine

    config = change(BASE, "fwpkm", reset=reset, owner=owner)
    with megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        initial = engine.memories[0].fast_weights().values.clone()
        engine.train_step(batches(0))
        moved = engine.memories[0].fast_weights().values
        assert torch.equal(moved, initial) == ((reset, owner) != ("step", "micro-batch"))
        engine.memories[0].reset()
        assert torch.equal(engine.memories[0].fast_weights().values, initial)
        report = engine.memory_report()
        assert report.finite_tables == {2: True}
        assert 0 < report.layers[2].gate_mean < 1
        assert report.worst_memorization_loss[2] == report.layers[2].memorization_loss > 0


@pytest.mark.parametrize("flag", ["reset_attention_mask", pytest.param("reset_position_ids", marks=pytest.mark.slow)])
def test_documents_kept_apart_reach_the_model(flag: str) -> None:
    """Every micro-batch's own boundaries; dropout off, so that only they can change a loss."""
    from megatron_fwpkm.engines.megatron import MegatronEngine

    plain = change(BASE, "model", hidden_dropout=0.0, attention_dropout=0.0)
    losses = []
    for config in (plain, change(plain, "data", **{flag: True})):
        with megatron_run(config.parallel, config.training) as world:
            engine = MegatronEngine(config, VOCABULARY, world.device)
            source = batches(0)
            if flag == "reset_position_ids":
                source = (item | {"position_ids": torch.arange(24)[None] % 7} for item in source)
            losses.append(engine.train_step(source).losses)
    assert losses[0] != losses[1]


def test_without_clipping_the_norm_is_still_measured() -> None:
    from megatron_fwpkm.engines.megatron import MegatronEngine

    norms = []
    for clip in (1.0, 0.0):
        config = change(BASE, "optimizer", clip_grad=clip)
        with megatron_run(config.parallel, config.training) as world:
            norms.append(MegatronEngine(config, VOCABULARY, world.device).train_step(batches(0)).grad_norm)
    assert norms[0] == norms[1] > 0


def test_layout_errors_name_the_flags() -> None:
    parallel = ParallelConfig(tensor_model_parallel_size=2)
    with (
        pytest.raises(ValueError, match="the number of processes, 1, is not divisible by"),
        megatron_run(parallel, BASE.training),
    ):
        pass
    with (
        pytest.raises(ValueError, match="--distributed-backend nccl needs CUDA"),
        megatron_run(ParallelConfig(distributed_backend="nccl"), BASE.training),
    ):
        pass


def test_batched_sends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With them an interleaved pipeline has wrong gradients without an error."""
    from megatron_fwpkm.engines import megatron as engine

    def with_batched_sends(*args: Any, **kwargs: Any) -> Any:
        model = build(*args, **kwargs)
        assert model.config.batch_p2p_comm is False
        model.config.batch_p2p_comm = True
        return model

    build = engine.build_model
    monkeypatch.setattr(engine, "build_model", with_batched_sends)
    refused = pytest.raises(AssertionError, match="batched sends give an interleaved pipeline wrong gradients")
    with megatron_run(BASE.parallel, BASE.training) as world, refused:
        engine.build_chunks(BASE, VOCABULARY, world.device)


def test_one_run_after_the_other_leaves_no_threads_behind() -> None:
    """Each has some thirty groups of processes, and gloo gives every one threads that look for work."""
    from megatron_fwpkm.engines.megatron import MegatronEngine

    threads = []
    for _ in range(3):
        with megatron_run(BASE.parallel, BASE.training) as world:
            threads.append(len(os.listdir("/proc/self/task")))
            MegatronEngine(BASE, VOCABULARY, world.device)
    assert threads[0] == threads[1] == threads[2]
