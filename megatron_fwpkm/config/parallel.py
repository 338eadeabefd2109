"""Process layout and distributed start-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import MAY_CHANGE, NOT_COMPARED, SAME_RUN, Above, AtLeast, AtMost


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is laid out over processes."""

    tensor_model_parallel_size: Annotated[int, AtLeast(1), AtMost(2**16), MAY_CHANGE] = 1
    """Ranks that share every layer; must divide the heads, --fwpkm-num-subkeys and --fwpkm-value-dim."""
    pipeline_model_parallel_size: Annotated[int, AtLeast(1), AtMost(1024), MAY_CHANGE] = 1
    """Pipeline stages."""
    num_virtual_stages_per_pipeline_rank: Annotated[int, AtLeast(1), AtMost(1024), MAY_CHANGE] = 1
    """Model chunks of every pipeline stage; 2 or more interleave the pipeline."""
    context_parallel_size: Annotated[int, AtLeast(1), AtMost(2**16), MAY_CHANGE] = 1
    """Ranks that share every sequence; a memory's columns are spread over them, too."""
    sequence_parallel: Annotated[bool, MAY_CHANGE] = False
    """Shard activations outside the tensor-parallel linears over the sequence."""
    use_distributed_optimizer: Annotated[bool, SAME_RUN] = False
    """Shard the optimizer state over data-parallel ranks (ZeRO-1)."""
    overlap_grad_reduce: Annotated[bool, NOT_COMPARED] = False
    """Overlap the gradient all-reduce with the backward pass."""
    grad_reduce_in_bf16: Annotated[bool, MAY_CHANGE] = False
    """With --bf16: keep and reduce gradients in bfloat16 instead of float32, which halves their memory and traffic."""
    distributed_backend: Annotated[Literal["auto", "nccl", "gloo"], NOT_COMPARED] = "auto"
    """Communication library; auto takes nccl with CUDA and gloo without."""
    distributed_timeout_minutes: Annotated[float, Above(0), AtMost(10**7), NOT_COMPARED] = 10.0
    """A collective that waits longer than this ends the run with an error."""
    rendezvous_timeout_minutes: Annotated[float, Above(0), AtMost(10**7), NOT_COMPARED] = 10.0
    """A rank that waits longer than this for the others to start ends with an error that names the missing ones."""
