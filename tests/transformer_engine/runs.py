"""What the tests run in processes of their own: a model of local modules and one of Transformer Engine's, side by side.

Nothing here may import megatron.core before `install`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_fwpkm.config import (
    FwPKMConfig,
    ImplementationConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    TrainingConfig,
)
from tests.transformer_engine import pretended

VOCABULARY = 64
SMALL = PretrainConfig(
    model=ModelConfig(
        num_layers=3,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_query_groups=2,
        seq_length=64,
        layer_pattern="swa:5,fa,swa:9",
        init_method_std=0.1,
    ),
    fwpkm=FwPKMConfig(layer_numbers=(2, 3), num_subkeys=8, key_dim=16, value_dim=16, topk=4, chunk_size=16),
    optimizer=OptimizerConfig(lr=1e-2, lr_warmup_iters=1, adam_implementation="torch"),
    training=TrainingConfig(micro_batch_size=1, global_batch_size=2, train_iters=10, num_threads=1),
)
IMPLEMENTATIONS = ("local", "transformer_engine")


def config_of(implementation: str, base: PretrainConfig = SMALL, **options: Any) -> PretrainConfig:
    """The configuration with one implementation of the layers; `options` are more of ImplementationConfig."""
    return replace(base, implementation=ImplementationConfig(transformer_impl=implementation, **options))  # type: ignore[arg-type]


def batches(start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-batches of one sequence, each another one."""
    number, length = start, SMALL.model.seq_length
    while True:
        tokens = torch.randint(0, VOCABULARY, (1, length + 1), generator=torch.Generator().manual_seed(number))
        yield {
            "tokens": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "loss_mask": torch.ones(1, length),
            "position_ids": torch.arange(length)[None],
            "document_starts": torch.zeros(1, length, dtype=torch.bool),
        }
        number += 1


def local_name(name: str) -> str:
    """What local modules call a parameter of Transformer Engine's."""
    for own, local in (
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
    ):
        name = name.replace(own, local)
    return name


def build(config: PretrainConfig, world: Any) -> Any:
    """An engine of a configuration."""
    from megatron_fwpkm.engines.megatron import MegatronEngine

    return MegatronEngine(config, VOCABULARY, world.device)


def weights(engine: Any) -> dict[str, torch.Tensor]:
    """Copies of the parameters, by the names of local modules."""
    (chunk,) = engine.chunks
    return {local_name(name.split("module.")[-1]): p.detach().clone() for name, p in chunk.named_parameters()}


def gradients(engine: Any) -> dict[str, torch.Tensor]:
    """Copies of the last step's gradients, by the names of local modules."""
    (chunk,) = engine.chunks
    return {local_name(name.split("module.")[-1]): p.main_grad.clone() for name, p in chunk.named_parameters()}


def moments(engine: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Copies of the optimizer's states of every parameter, by the names of local modules."""
    (chunk,) = engine.chunks
    names = {id(p): local_name(name.split("module.")[-1]) for name, p in chunk.named_parameters()}
    found = {}
    for part in engine.optimizer.chained_optimizers:
        groups = part.optimizer.param_groups
        if hasattr(part, "model_param_group_index_map"):  # of the distributed optimizer, which has its own copies
            held = [(p, groups[group]["params"][at]) for p, (group, at) in part.model_param_group_index_map.items()]
        else:
            held = [(p, p) for group in groups for p in group["params"]]
        for parameter, stepped in held:
            state = part.optimizer.state[stepped]
            found[names[id(parameter)]] = {key: value.clone() for key, value in state.items()}
    return found


def tables(engine: Any) -> list[torch.Tensor]:
    """Copies of the fast weights."""
    states = [memory.fast_weights() for memory in engine.memories]
    return [table.clone() for state in states for table in (state.sub_keys, state.values)]


def training(rank: int, world_size: int, parallel: ParallelConfig, folder: Path, options: dict[str, Any]) -> Any:
    """Train both implementations; then each goes on from the other's checkpoint.

    Returns by implementation the weights at the start, steps, gradients and kernels; and by the implementation that a
    checkpoint comes from what was saved, what the other one loaded, and the steps of both from there on.
    """
    pretended.install()
    from megatron_fwpkm.engines.megatron_groups import megatron_run
    from tests.transformer_engine.kernels import CALLS

    base = replace(SMALL, parallel=parallel, **options)
    seen: dict[str, dict[str, Any]] = {}
    moved: dict[str, dict[str, Any]] = {}
    with megatron_run(base.parallel, base.training) as world:
        for name in IMPLEMENTATIONS:
            CALLS.clear()
            engine, source = build(config_of(name, base), world), batches()
            seen[name] = {"begins with": weights(engine), "steps": [], "kernels": CALLS}
            for _ in range(3):
                result = engine.train_step(source)
                seen[name]["steps"].append((result.losses.loss, result.grad_norm))
                seen[name].setdefault("gradients", gradients(engine))
            seen[name]["kernels"] = sorted(set(CALLS))
            place = folder / name
            place.mkdir(exist_ok=True)
            engine.save(place)
            other = build(config_of(IMPLEMENTATIONS[1 - IMPLEMENTATIONS.index(name)], base), world)
            other.load(place, weights_only=False)
            moved[name] = {
                "saved": (weights(engine), moments(engine), tables(engine)),
                "loaded": (weights(other), moments(other), tables(other)),
                "goes on": [[one.train_step(source).losses.loss for _ in range(2)]
                            for one, source in ((engine, batches(6)), (other, batches(6)))],
            }  # fmt: skip
    return {"seen": seen, "moved": moved}


def saved_again(rank: int, world_size: int, checkpoint: Path, target: Path) -> list[str]:
    """Write a checkpoint of a run anew from Transformer Engine's layers into a copy; returns its kinds of linears."""
    pretended.install()
    import shutil

    from megatron_fwpkm.checkpoint.record import FAST_WEIGHTS_FOLDER, MODEL_FOLDER, read_record, write_record
    from megatron_fwpkm.checkpoint.saved_config import read_saved_config
    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    saved = read_saved_config(checkpoint)
    torch_adam = replace(saved.optimizer, adam_implementation="torch")
    config = config_of("transformer_engine", replace(saved, optimizer=torch_adam))
    shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns(MODEL_FOLDER, FAST_WEIGHTS_FOLDER))
    with megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, VOCABULARY, world.device)
        engine.load(checkpoint, weights_only=False)
        engine.save(target)
        write_record(target, read_record(checkpoint))  # of files of other sizes
        (chunk,) = engine.chunks
        return sorted({type(module).__name__ for module in chunk.modules() if "Linear" in type(module).__name__})


def attention(rank: int, world_size: int) -> dict[str, Any]:
    """A step with torch's attention and one with Transformer Engine's: its windows, the step and the gradients."""
    pretended.install()
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    found = {}
    with megatron_run(SMALL.parallel, SMALL.training) as world:
        for backend in ("local", "te"):
            engine = build(config_of("transformer_engine", attention_backend=backend), world)
            (chunk,) = engine.chunks
            cores = [module for name, module in chunk.named_modules() if name.endswith("core_attention")]
            result = engine.train_step(batches())
            found[backend] = {
                "kinds": {type(core).__name__ for core in cores},
                "windows": [getattr(core, "window_size", None) for core in cores],
                "step": (result.losses.loss, result.grad_norm),
                "gradients": gradients(engine),
            }
    return found
