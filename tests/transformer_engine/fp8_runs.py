"""What the FP8 tests run in a process of their own; nothing here may import megatron.core before `install`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_fwpkm.config import ParallelConfig, PretrainConfig
from megatron_fwpkm.config.implementation_rules import implementation_problems
from tests.transformer_engine import pretended
from tests.transformer_engine.runs import SMALL, batches, build, config_of

RECIPES: dict[str, dict[str, Any]] = {
    "none": {},
    "delayed": {"fp8_format": "hybrid", "fp8_margin": 2},
    "tensorwise": {"fp8_format": "e4m3", "fp8_recipe": "tensorwise"},
}


TWO_RANKS = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)


def _config(name: str, parallel: ParallelConfig = SMALL.parallel, **training: Any) -> PretrainConfig:
    base = replace(
        SMALL,
        model=replace(SMALL.model, ffn_hidden_size=64),
        fwpkm=replace(SMALL.fwpkm, value_dim=32),
        parallel=parallel,
        training=replace(SMALL.training, bf16=True, **training),
    )
    config = config_of("transformer_engine", base, attention_backend="local", **RECIPES[name])
    wrong = list(implementation_problems(config))
    assert not wrong, wrong
    return config


class Watch:
    """Notes what enters FP8: the recipes of the contexts, and whose memory is rounded to 8 bits."""

    def __init__(self) -> None:
        self.recipes: list[Any] = []
        self.rounded: set[int] = set()
        self.formats: set[str] = set()
        kernels: Any = sys.modules["transformer_engine_torch"]
        manager: Any = sys.modules["transformer_engine.pytorch.fp8"].FP8GlobalStateManager
        quantize, enter = kernels.quantize, manager.autocast_enter

        def watched_quantize(x: torch.Tensor, quantizer: Any, *others: Any) -> Any:
            self.rounded.add(x.untyped_storage().data_ptr())
            self.formats.add(quantizer.dtype.name)
            return quantize(x, quantizer, *others)

        def watched_enter(*args: Any, **kwargs: Any) -> Any:
            recipe = kwargs.get("fp8_recipe", args[2] if len(args) > 2 else None)
            if recipe is not None:
                self.recipes.append(recipe)
            return enter(*args, **kwargs)

        kernels.quantize, manager.autocast_enter = watched_quantize, watched_enter

    def among(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
        """The names of those that were rounded."""
        return [name for name, tensor in tensors if tensor.untyped_storage().data_ptr() in self.rounded]


def arithmetic(rank: int, world_size: int, parallel: ParallelConfig) -> dict[str, Any]:
    """Two steps in every precision: losses, gradients, recipes, and what was rounded to 8 bits."""
    pretended.install()
    from megatron_fwpkm.checkpoint.slow_weights import unwrap
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    results: dict[str, Any] = {}
    watch = Watch()
    for name in RECIPES:
        config = _config(name, parallel)
        with megatron_run(config.parallel, config.training) as world:
            watch.recipes.clear(), watch.rounded.clear(), watch.formats.clear()
            engine, source = build(config, world), batches()
            model = unwrap(engine.chunks[0])
            steps = [engine.train_step(source) for _ in range(2)]
            results[name] = {
                "steps": [(step.losses.loss, step.grad_norm) for step in steps],
                "recipes": [(type(one).__name__, getattr(one, "margin", None), one.fp8_format.name)
                            for one in watch.recipes],
                "formats": sorted(watch.formats),
                "hashes": [memory.consistency_hash().item() for memory in engine.memories],
                "rounded": watch.among(model.named_parameters()),
                "rounded tables": watch.among(model.named_buffers()),
                "tables": {str(memory.sub_keys.dtype) for memory in engine.memories}
                | {str(memory.values.dtype) for memory in engine.memories},
            }  # fmt: skip
    return results


def resumed(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Four steps with delayed scaling, at once and cut by a checkpoint; and the checkpoint in every precision."""
    pretended.install()
    from megatron_fwpkm.engines.megatron_groups import megatron_run
    from tests.engines.test_engine import state_of

    config = _config("delayed")
    found: dict[str, Any] = {}
    with megatron_run(config.parallel, config.training) as world:
        engine, source = build(config, world), batches()
        for _ in range(2):
            engine.train_step(source)
        engine.save(folder)
        found["whole"] = [engine.train_step(source).losses.loss for _ in range(2)], state_of(engine)
        again = build(config, world)
        again.load(folder, weights_only=False)
        source = batches(4)
        found["cut"] = [again.train_step(source).losses.loss for _ in range(2)], state_of(again)
        fresh = build(config, world)
        fresh.load(folder, weights_only=False)
        for module in fresh.chunks[0].modules():  # as if the scales had not been kept
            if hasattr(module, "fp8_meta") and "scaling_fwd" in module.fp8_meta:
                module.fp8_meta["scaling_fwd"].scale.fill_(1.0)
        source = batches(4)
        found["without scales"] = [fresh.train_step(source).losses.loss for _ in range(2)]
        for other in ("none", "tensorwise"):
            engine = build(_config(other), world)
            engine.load(folder, weights_only=False)
            found[other] = engine.train_step(batches(4)).losses.loss
        plain = folder.with_name("plain")
        plain.mkdir()
        engine = build(_config("none"), world)
        engine.train_step(batches())
        engine.save(plain)
        into = build(config, world)
        into.load(plain, weights_only=False)
        found["from plain"] = into.train_step(batches(4)).losses.loss
    return found


def recomputed(rank: int, world_size: int) -> dict[str, Any]:
    """A step of every precision, with and without full recompute: loss and gradients."""
    pretended.install()
    from megatron_fwpkm.engines.megatron_groups import megatron_run
    from tests.transformer_engine.runs import gradients

    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    found: dict[str, Any] = {}
    for name in RECIPES:
        for recompute in ({}, full):
            config = _config(name, **recompute)
            with megatron_run(config.parallel, config.training) as world:
                engine = build(config, world)
                loss = engine.train_step(batches()).losses.loss
                found.setdefault(name, []).append((loss, gradients(engine)))
    return found
