"""Puts the memory layers of a model into CUDA graphs when training starts (--fwpkm-cuda-graph)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import nn

from ..config import PretrainConfig
from ..config.derived import micro_batches_in_flight
from ..layers.fast_weight_memory import FastWeightMemoryLayer
from ..libraries.choices import choose_cuda_graphs
from ..libraries.probes import installed
from ..ops.fast_weight_memory.implementation_choice import choose_implementation

logger = logging.getLogger("megatron_fwpkm")


def capture_memories(config: PretrainConfig, memories: Sequence[nn.Module], replicas: int, stage: int) -> None:
    """Capture forward and backward of every product key memory for each micro-batch that may be in flight.

    Args:
        config: of the run.
        memories: of this rank, on the device where they are trained.
        replicas: data-parallel ranks.
        stage: of the pipeline.

    Raises:
        ValueError: --fwpkm-cuda-graph on, and a memory would not run in Triton.
    """
    if choose_cuda_graphs(config, installed()).name != "on":
        return
    layers = [memory for memory in memories if isinstance(memory, FastWeightMemoryLayer)]
    for layer in layers:
        implementation = choose_implementation(layer.fast_weights(), layer.options)
        if implementation != "triton":
            obstacle = f"the memory of layer {layer.layer_number} runs as {implementation}, and only triton never waits"
            if config.fwpkm.cuda_graph == "on":
                raise ValueError(f"--fwpkm-cuda-graph on: {obstacle}; use auto or off")
            logger.info("CUDA graphs off: %s", obstacle)
            return
    number = math.ceil(micro_batches_in_flight(config, replicas, stage))
    for layer in layers:
        layer.capture(number, _hidden_states(config, layer))


def _hidden_states(config: PretrainConfig, layer: FastWeightMemoryLayer) -> torch.Tensor:
    """Hidden states [s, b, h] as those of training, without drawing from a generator."""
    shape = config.model.seq_length, config.training.micro_batch_size, config.model.hidden_size
    weight = layer.output_proj.weight
    assert isinstance(weight, torch.Tensor)
    numbers = torch.arange(math.prod(shape), device=weight.device, dtype=torch.float32)
    return numbers.sin_().to(weight.dtype).view(shape)
