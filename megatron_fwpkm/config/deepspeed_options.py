"""What DeepSpeed is told: options that follow from the flags, merged with those of --deepspeed-config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .derived import global_batch_size
from .pretrain import PretrainConfig

FLAGS_OF_KEYS = {
    "train_batch_size": "--global-batch-size",
    "train_micro_batch_size_per_gpu": "--micro-batch-size",
    "gradient_accumulation_steps": "--global-batch-size",
    "gradient_clipping": "--clip-grad",
    "bf16.enabled": "--bf16",
    "data_types.grad_accum_dtype": "--grad-reduce-in-bf16",
    "communication_data_type": "--grad-reduce-in-bf16",
    "zero_optimization.stage": "--zero-stage",
    "zero_optimization.overlap_comm": "--overlap-grad-reduce",
    "zero_allow_untested_optimizer": "--engine",
}
"""Keys whose values follow from flags, and the flag of each."""

FREE_SECTIONS = (
    "zero_optimization",
    "data_types",
    "bf16",
    "prescale_gradients",
    "gradient_predivide_factor",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
    "tensorboard",
    "csv_monitor",
    "wandb",
)
"""What a file may hold beside those: how ZeRO communicates, and what DeepSpeed measures and prints."""

_AUTO = "auto"
"""In a file: what the flags say."""


def zero_stage(config: PretrainConfig) -> int:
    """Stage of ZeRO: --zero-stage, else 1."""
    return 1 if config.engine.zero_stage is None else config.engine.zero_stage


def sharding_stage(config: PretrainConfig) -> int:
    """What is sharded over the data-parallel ranks, as a stage of ZeRO, whichever engine does it."""
    if config.engine.engine == "deepspeed":
        return zero_stage(config)
    return 1 if config.parallel.use_distributed_optimizer else 0


def options_of_flags(config: PretrainConfig, data_parallel: int) -> dict[str, Any]:
    """DeepSpeed's options as the flags make them, for `data_parallel` replicas."""
    training, parallel = config.training, config.parallel
    batch = global_batch_size(config, data_parallel)
    in_bf16 = training.bf16 and parallel.grad_reduce_in_bf16
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": batch // (training.micro_batch_size * data_parallel),
        "gradient_clipping": config.optimizer.clip_grad,
        "bf16": {"enabled": training.bf16},
        "data_types": {"grad_accum_dtype": "bf16" if in_bf16 else "fp32"},
        "communication_data_type": "bf16" if in_bf16 else "fp32",
        "zero_optimization": {"stage": zero_stage(config), "overlap_comm": parallel.overlap_grad_reduce},
        "zero_allow_untested_optimizer": True,
    }


def deepspeed_options(config: PretrainConfig, data_parallel: int) -> dict[str, Any]:
    """DeepSpeed's options, with those of the file; its problems must have been looked at."""
    made = options_of_flags(config, data_parallel)
    if config.engine.deepspeed_config is None:
        return made
    read = json.loads(Path(config.engine.deepspeed_config).read_text(encoding="utf-8"))
    return _merged(read, made)


def file_problems(config: PretrainConfig, data_parallel: int | None) -> Iterator[str]:
    """A sentence for everything that is wrong with the file, and for every key that contradicts a flag.

    Without `data_parallel` keys that depend on the number of replicas are not looked at.
    """
    path = config.engine.deepspeed_config
    if path is None:
        return
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        yield f"--deepspeed-config {path} cannot be read: {error.strerror}"
        return
    except ValueError as error:
        yield f"--deepspeed-config {path} is not JSON: {error}"
        return
    if not isinstance(read, dict):
        yield f"--deepspeed-config {path} must hold a JSON object, as DeepSpeed's own configuration files do"
        return
    yield from _unknown_keys(path, read)
    flat, made = _flat(read), _flat(options_of_flags(config, data_parallel or 1))
    for key, flag in FLAGS_OF_KEYS.items():
        if data_parallel is None and key in ("train_batch_size", "gradient_accumulation_steps"):
            continue
        if key in flat and flat[key] not in (_AUTO, made[key]):
            yield (
                f"--deepspeed-config {path} sets {key} to {json.dumps(flat[key])}, but {flag} sets it to "
                f"{json.dumps(made[key])}: use the same value in both, or leave {key} out of the file"
            )


def _unknown_keys(path: str, read: dict[str, Any]) -> Iterator[str]:
    known = sorted({key.split(".")[0] for key in FLAGS_OF_KEYS}.union(FREE_SECTIONS))
    for key in read:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            yield (
                f"--deepspeed-config {path} has {key}, which cannot be set in this file{hint}; use flags for the "
                f"model, the batch, the optimizer and its schedule; the file may contain {', '.join(known)}"
            )


def _merged(read: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """`read` with what `made` says in it."""
    merged = dict(read)
    for key, value in made.items():
        merged[key] = _merged(read.get(key) or {}, value) if isinstance(value, dict) else value
    return merged


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted keys, of two levels."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            found[key] = value
    return found
