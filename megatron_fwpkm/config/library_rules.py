"""Rules between the options that name libraries and the rest: which exclude each other, and why."""

from __future__ import annotations

from collections.abc import Iterator

from .cuda_graph_rules import cuda_graph_problems
from .pretrain import PretrainConfig


def library_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for every violated rule."""
    obstacle = why_no_gradient_fusion(config)
    if config.training.gradient_accumulation_fusion == "on" and obstacle is not None:
        yield f"--gradient-accumulation-fusion on: {obstacle}; use auto or off"
    yield from cuda_graph_problems(config)


def why_no_gradient_fusion(config: PretrainConfig) -> str | None:
    """What in the options rules out gradient accumulation fusion, None where it could be used."""
    if config.engine.engine == "deepspeed":
        return "--engine deepspeed keeps gradients in buffers of its own"
    layers = config.training.cpu_offloading_num_layers
    if layers and config.parallel.overlap_grad_reduce:
        # Backward gets an offloaded layer's weights as new tensors, without the marks by which Megatron notices.
        return f"--overlap-grad-reduce does not notice it in the layers of --cpu-offloading-num-layers {layers}"
    return None
