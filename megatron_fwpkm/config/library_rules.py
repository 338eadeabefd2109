"""Rules between the options that name libraries and the rest: which exclude each other, and why."""

from __future__ import annotations

from collections.abc import Iterator

from .pretrain import PretrainConfig


def library_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for every violated rule."""
    obstacle = why_no_gradient_fusion(config)
    if config.training.gradient_accumulation_fusion == "on" and obstacle is not None:
        yield f"--gradient-accumulation-fusion on: {obstacle}; use auto or off"


def why_no_gradient_fusion(config: PretrainConfig) -> str | None:
    """What in the options rules out gradient accumulation fusion, None where it could be used."""
    if config.engine.engine == "deepspeed":
        return "--engine deepspeed keeps gradients in buffers of its own"
    if config.parallel.grad_reduce_in_bf16 and not config.training.bf16:
        return "float32 weights need float32 gradients, and --grad-reduce-in-bf16 is given"
    return None
