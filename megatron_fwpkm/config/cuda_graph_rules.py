"""CUDA graphs of memories (--fwpkm-cuda-graph): what rules them out, and what they need. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator

from .derived import micro_batches_in_flight, num_slots
from .layer_kind import weight_bytes
from .pretrain import PretrainConfig
from .undo_log_bytes import passing_log_bytes


def cuda_graph_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence if --fwpkm-cuda-graph on cannot be had with these options."""
    obstacle = why_no_cuda_graphs(config)
    if config.fwpkm.cuda_graph == "on" and obstacle is not None:
        yield f"--fwpkm-cuda-graph on: {obstacle}; use auto or off"


def why_no_cuda_graphs(config: PretrainConfig) -> str | None:
    """What in the options keeps the memories out of CUDA graphs, None where nothing does."""
    fwpkm, parallel = config.fwpkm, config.parallel
    if not fwpkm.layer_numbers:
        return "no layer has a product key memory (--fwpkm-layer-numbers)"
    if fwpkm.implementation in ("reference", "sparse"):
        return f"--fwpkm-implementation {fwpkm.implementation} asks the device for numbers"
    if fwpkm.reset == "document":
        return "--fwpkm-reset document cuts every batch at other places"
    if fwpkm.owner == "sequence":
        return "--fwpkm-owner sequence undoes the writes of every sequence before the next one reads"
    if config.engine.engine == "deepspeed":
        return "--engine deepspeed gathers weights and reduces gradients on its own"
    if parallel.num_virtual_stages_per_pipeline_rank > 1:
        return "an interleaved pipeline has another number of micro-batches in flight for each of its chunks"
    if parallel.tensor_model_parallel_size > 1:
        return f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size} has collectives within the memory"
    if parallel.context_parallel_size > 1:
        return f"--context-parallel-size {parallel.context_parallel_size} has collectives within the memory"
    if config.implementation.fp8_format is not None:
        return f"--fp8-format {config.implementation.fp8_format} changes its scales from step to step"
    return None


def cuda_graph_bytes(config: PretrainConfig, replicas: int, stage: int) -> int:
    """About what the graphs of one memory keep beyond its undo log and activations; 0 without graphs.

    Every micro-batch in flight has graphs with memory of their own: hidden states and their gradients, in and out, the
    gradients of the weights, and what forward and backward need for a while.
    """
    if config.fwpkm.cuda_graph == "off" or why_no_cuda_graphs(config) is not None:
        return 0
    fwpkm, hidden = config.fwpkm, config.model.hidden_size
    tokens, size = config.training.micro_batch_size * config.model.seq_length, weight_bytes(config)
    pairs = tokens * fwpkm.num_heads * fwpkm.topk
    chunk = config.training.micro_batch_size * fwpkm.chunk_size
    weights = hidden * (fwpkm.num_heads * fwpkm.key_dim + 2 * fwpkm.value_dim)
    scratch = 4 * fwpkm.value_dim * (min(pairs, num_slots(fwpkm)) + chunk + chunk * fwpkm.num_heads * fwpkm.topk // 16)
    graphs = 4 * tokens * hidden * size + weights * size + scratch + passing_log_bytes(config)
    return round(micro_batches_in_flight(config, replicas, stage)) * graphs
