"""What may change at --resume does change: a resumed run is trained with what a new run with its flags is trained with.

The state is looked at (parameter groups, schedule, layers), not the line that announces a change.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.checkpoint.compatibility import check_resumable
from megatron_fwpkm.checkpoint.slow_weights import unwrap
from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.derived import embedding_rows
from megatron_fwpkm.config.field_metadata import MAY_CHANGE, marked
from megatron_fwpkm.config.loading import option_groups
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from tests.engines.test_engine import BASE, VOCABULARY, batches, change, state_of
from tests.training import test_moving_layouts
from tests.training.test_parallel_layouts import configured

STEPS = 5
CHANGEABLE = {(group, name) for group, cls, _ in option_groups() for name in marked(cls, MAY_CHANGE)}
GROWS = {"start_weight_decay": 0.01, "end_weight_decay": 0.1, "weight_decay_incr_style": "linear"}
WSD = {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 4}

# Option -> the flags that change it, by group: as (values of the first run, values of the resumed one).
SCHEDULE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lr": ({}, {"lr": 3e-2}),
    "min_lr": ({}, {"min_lr": 2e-3}),
    "lr_decay_style": ({}, {"lr_decay_style": "linear"}),
    "lr_warmup_iters": ({}, {"lr_warmup_iters": 5}),
    "lr_decay_iters": ({}, {"lr_decay_iters": 20}),
    "lr_wsd_decay_iters": (WSD, WSD | {"lr_wsd_decay_iters": 6}),
    "lr_wsd_decay_style": (WSD, WSD | {"lr_wsd_decay_style": "linear"}),
    "decoupled_lr": ({"decoupled_lr": 1e-3}, {"decoupled_lr": 2e-3}),
    "decoupled_min_lr": ({"decoupled_lr": 1e-3}, {"decoupled_lr": 1e-3, "decoupled_min_lr": 1e-4}),
    "weight_decay": ({}, {"weight_decay": 0.3}),
    "start_weight_decay": (GROWS, GROWS | {"start_weight_decay": 0.02}),
    "end_weight_decay": (GROWS, GROWS | {"end_weight_decay": 0.2}),
    "weight_decay_incr_style": (GROWS, GROWS | {"weight_decay_incr_style": "cosine"}),
    "adam_beta1": ({}, {"adam_beta1": 0.8}),
    "adam_beta2": ({}, {"adam_beta2": 0.97}),
    "adam_eps": ({}, {"adam_eps": 1e-6}),
    "clip_grad": ({}, {"clip_grad": 0.5}),
}
FULL = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}
ENGINE: dict[tuple[str, str], dict[str, Any]] = {
    ("model", "attention_dropout"): {"attention_dropout": 0.3},
    ("model", "hidden_dropout"): {"hidden_dropout": 0.3},
    ("model", "make_vocab_size_divisible_by"): {"make_vocab_size_divisible_by": 50},
    ("fwpkm", "topk"): {"topk": 3},
    ("fwpkm", "chunk_size"): {"chunk_size": 12},
    ("fwpkm", "lookahead"): {"lookahead": 2},
    ("fwpkm", "inner_lr"): {"inner_lr": 0.5},
    ("fwpkm", "addressing_weight"): {"addressing_weight": 0.1},
    ("fwpkm", "boundary"): {"boundary": "carry"},
    ("fwpkm", "reset"): {"reset": "step"},
    ("fwpkm", "owner"): {"owner": "sequence", "reset": "step"},
    ("fwpkm", "pswa_probability"): {"pswa_probability": 0.5},
    ("fwpkm", "dp_sync"): {"dp_sync": "average"},
    ("fwpkm", "dp_sync_interval"): {"dp_sync_interval": 3},
    ("fwpkm", "table_dtype"): {"table_dtype": "bf16"},
    ("fwpkm", "undo_log"): {"undo_log": "bf16"},
    ("training", "micro_batch_size"): {"micro_batch_size": 2},
    ("training", "global_batch_size"): {"global_batch_size": 8},
    ("training", "train_iters"): {"train_iters": 12},
    ("training", "recompute_granularity"): {"recompute_granularity": "selective"},
    ("training", "recompute_method"): FULL,
    ("training", "recompute_num_layers"): FULL,
    ("training", "recompute_modules"): {"recompute_granularity": "selective", "recompute_modules": ("mlp",)},
    ("training", "calculate_per_token_loss"): {"calculate_per_token_loss": True},
    ("parallel", "grad_reduce_in_bf16"): {"grad_reduce_in_bf16": True},
    ("training", "cpu_offloading_num_layers"): {"cpu_offloading_num_layers": 1},
    ("training", "deterministic"): {"deterministic": False},
}
# Of layers that the model here has not: tests/engines/test_product_key_values.py.
STATIC_MEMORY = {place for place in CHANGEABLE if place[0] == "pkm"}
# Of another kind of memory than the one here: tests/engines/test_fast_mlp.py.
FAST_MLP = {place for place in CHANGEABLE if place[0] == "fwmlp"}
# What the process layout is: loaded exactly at any other (test_moving_layouts, whose layouts have all of these).
LAYOUT = {place for place in CHANGEABLE if place[0] == "parallel"} - ENGINE.keys()
# What Transformer Engine computes in: tests/transformer_engine/test_fp8.py.
FP8 = {place for place in CHANGEABLE if place[0] == "implementation"}
# How DeepSpeed shards: tests/engines/test_deepspeed_checkpoint.py.
ZERO = {("engine", "zero_stage")}
# What is made from the configuration behind the engine: tests/test_pretrain_resume.py.
RUN = {place for place in CHANGEABLE if place[0] == "data"} | {("training", "divergence_factor")}
# What is done about faults, read from the configuration at every step: tests/training/test_recovery.py.
FAULTS = {place for place in CHANGEABLE if place[0] == "faults"}


def test_every_option_that_may_change_is_looked_at() -> None:
    named = {("optimizer", name) for name in SCHEDULE} | ENGINE.keys() | STATIC_MEMORY
    named |= FAST_MLP | LAYOUT | FP8 | ZERO | RUN | FAULTS
    assert named == CHANGEABLE
    default = PretrainConfig()
    layouts = [configured(layout, "float32", "never") for layout in test_moving_layouts.LAYOUTS.values()]
    for group, name in LAYOUT:
        usual = getattr(getattr(default, group), name)
        assert any(getattr(getattr(config, group), name) != usual for config in layouts), name


def groups(engine: MegatronEngine) -> list[dict[str, Any]]:
    """What every parameter is trained with, now and in the steps that follow."""
    seen = []
    for _ in range(STEPS):
        for part in engine.optimizer.chained_optimizers:
            found = [{k: v for k, v in group.items() if k not in ("params", "step")} for group in part.param_groups]
            seen += [group | {"clip_grad": part.config.clip_grad} for group in found]
        engine.scheduler.step(1)
    return seen


def trained_with(engine: MegatronEngine) -> dict[str, Any]:
    """What an engine computes with, as its parts hold it."""
    core, memory = engine.chunks[0].config, engine.memories[0]
    held = {
        "groups": groups(engine),
        "micro-batches": (engine._num_microbatches, engine._config.training.micro_batch_size),
        "rows": unwrap(engine.chunks[0]).embedding.word_embeddings.weight.shape[0],
        "attention dropout": [m.dropout for m in engine.chunks[0].modules() if type(m).__name__ == "WindowedAttention"],
        "hidden dropout": [m.hidden_dropout for m in engine.chunks[0].modules() if hasattr(m, "hidden_dropout")],
        "recompute": (core.recompute_granularity, core.recompute_method, core.recompute_num_layers),
        "recomputed": core.recompute_modules,
        "per token": (core.calculate_per_token_loss, engine.chunks[0].buffers[0].gradient_scaling_factor),
        "reduced in float32": engine.chunks[0].ddp_config.grad_reduce_in_fp32,
        "offloaded": core.offloaded_layers,
        "memory": asdict(memory.config.fwpkm),
        "chunk": (memory.options.chunk_size, memory.options.boundary),
        "table": memory.fast_weights().values.dtype,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    assert held["attention dropout"] and held["hidden dropout"]
    return held


def build(config: PretrainConfig, device: torch.device) -> MegatronEngine:
    rows = embedding_rows(config, VOCABULARY)
    return MegatronEngine(config, rows, device)


def save(config: PretrainConfig, folder: Path, device: torch.device) -> Path:
    """A checkpoint after two steps."""
    engine, source = build(config, device), batches(0)
    for _ in range(2):
        engine.train_step(source)
    folder.mkdir()
    engine.save(folder)
    return folder


def resumed(config: PretrainConfig, folder: Path, device: torch.device) -> dict[str, Any]:
    engine = build(config, device)
    engine.load(folder, weights_only=False)
    assert engine.scheduler.num_steps == 2
    return trained_with(engine)


def new_run(config: PretrainConfig, device: torch.device) -> dict[str, Any]:
    engine = build(config, device)
    engine.scheduler.step(2)
    return trained_with(engine)


def layout_of(kind: str) -> PretrainConfig:
    config = change(BASE, "training", bf16="bf16" in kind)
    return change(config, "parallel", use_distributed_optimizer="distributed" in kind)


KINDS_IN_SLOW_RUNS = ("plain bf16", "distributed fp32", "distributed bf16")


@pytest.mark.parametrize(
    "kind",
    ["plain fp32", *(pytest.param(how, marks=pytest.mark.slow) for how in KINDS_IN_SLOW_RUNS)],
)
def test_options_of_the_optimizer(kind: str, tmp_path: Path) -> None:
    config = layout_of(kind)
    before: dict[str, tuple[Path, dict[str, Any]]] = {}
    wrong = []
    with megatron_run(config.parallel, config.training) as world:
        for name, (values, others) in SCHEDULE.items():
            first, second = (change(config, "optimizer", **part) for part in (values, others))
            assert check_resumable(first, second, "there", finetune=False)  # it is announced
            if str(values) not in before:
                folder = save(first, tmp_path / str(len(before)), world.device)
                before[str(values)] = folder, resumed(first, folder, world.device)
            folder, unchanged = before[str(values)]
            new = new_run(second, world.device)
            assert new != unchanged, f"{name} is not among what is looked at"
            wrong += [name] if resumed(second, folder, world.device) != new else []
    assert wrong == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with megatron_run(BASE.parallel, BASE.training) as world:
        return save(BASE, tmp_path_factory.mktemp("resume") / "checkpoint", world.device)


@pytest.fixture(scope="module")
def unchanged(checkpoint: Path) -> dict[str, Any]:
    with megatron_run(BASE.parallel, BASE.training) as world:
        return resumed(BASE, checkpoint, world.device)


@pytest.mark.parametrize(("group", "name"), ENGINE, ids=lambda part: part)
def test_options_of_model_memory_and_batch(group: str, name: str, checkpoint: Path, unchanged: dict[str, Any]) -> None:
    config = change(BASE, group, **ENGINE[group, name])
    assert check_resumable(BASE, config, "there", finetune=False)  # it is announced
    with megatron_run(config.parallel, config.training) as world:
        found = resumed(config, checkpoint, world.device)
        assert found == new_run(config, world.device)
    assert found != unchanged, "the option is not among what is looked at"


def test_padding_of_the_vocabulary_leaves_weights_and_moments(checkpoint: Path) -> None:
    states = []
    for config in (BASE, change(BASE, "model", make_vocab_size_divisible_by=50)):
        with megatron_run(config.parallel, config.training) as world:
            engine = build(config, world.device)
            engine.load(checkpoint, weights_only=False)
            states.append(state_of(engine))
    one, other = states
    assert one.keys() == other.keys()
    padded = [name for name in one if one[name].shape != other[name].shape]
    assert len(padded) == 4  # the embedding, its float32 copy and both moments
    for name in one:
        rows = min(len(one[name]), len(other[name])) if name in padded else None
        assert torch.equal(one[name][:rows] if rows else one[name], other[name][:rows] if rows else other[name]), name


@pytest.mark.parametrize(
    ("reset", "owner"), [("step", "micro-batch"), ("step", "sequence"), ("document", "micro-batch")]
)
def test_a_reset_that_is_new_puts_the_initial_memory_back(reset: str, owner: str, checkpoint: Path) -> None:
    """Also where the run has written into its memory before; at once where no step does."""
    config = change(BASE, "fwpkm", reset=reset, owner=owner)
    with megatron_run(config.parallel, config.training) as world:
        engine = build(config, world.device)
        initial = [table.clone() for table in (engine.memories[0].sub_keys, engine.memories[0].values)]
        engine.load(checkpoint, weights_only=False)
        if (reset, owner) == ("step", "micro-batch"):
            assert not torch.equal(engine.memories[0].values, initial[1])
            engine.memories[0].reset()
        assert torch.equal(engine.memories[0].sub_keys, initial[0])
        assert torch.equal(engine.memories[0].values, initial[1])


def test_a_table_of_another_dtype_holds_the_saved_numbers(checkpoint: Path, tmp_path: Path) -> None:
    tables, folder = [], checkpoint
    for dtype in ("fp32", "bf16", "fp32"):
        config = change(BASE, "fwpkm", table_dtype=dtype)
        with megatron_run(config.parallel, config.training) as world:
            engine = build(config, world.device)
            engine.load(folder, weights_only=False)
            tables.append(engine.memories[0].fast_weights().values.clone())
            folder = tmp_path / str(len(tables))
            folder.mkdir()
            engine.save(folder)
    assert torch.equal(tables[0].bfloat16(), tables[1])
    assert torch.equal(tables[1].float(), tables[2])
