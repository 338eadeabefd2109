"""Process layout and distributed start-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import MAY_CHANGE, NOT_COMPARED, SAME_RUN, Above, AtLeast, AtMost


@dataclass(frozen=True)
class ParallelConfig:
    """Distribution of the model over processes."""

    tensor_model_parallel_size: Annotated[int, AtLeast(1), AtMost(2**16), MAY_CHANGE] = 1
    """Number of ranks that share every layer; the heads, --fwpkm-num-subkeys and --fwpkm-value-dim must be divisible by
    it."""
    pipeline_model_parallel_size: Annotated[int, AtLeast(1), AtMost(1024), MAY_CHANGE] = 1
    """Number of pipeline stages."""
    num_virtual_stages_per_pipeline_rank: Annotated[int, AtLeast(1), AtMost(1024), MAY_CHANGE] = 1
    """Number of model chunks per pipeline stage; 2 or more select the interleaved schedule."""
    context_parallel_size: Annotated[int, AtLeast(1), AtMost(2**16), MAY_CHANGE] = 1
    """Number of ranks that share every sequence; the columns of the memory's values are sharded over them, too."""
    sequence_parallel: Annotated[bool, MAY_CHANGE] = False
    """Shard the activations outside the tensor-parallel linear layers along the sequence."""
    use_distributed_optimizer: Annotated[bool, SAME_RUN] = False
    """Shard the optimizer state over the data-parallel ranks (ZeRO-1)."""
    overlap_grad_reduce: Annotated[bool, NOT_COMPARED] = False
    """Overlap the gradient all-reduce with the backward pass."""
    grad_reduce_in_bf16: Annotated[bool, MAY_CHANGE] = False
    """With --bf16: keep and reduce gradients in bfloat16 instead of float32, which halves their memory and
    communication volume."""
    distributed_backend: Annotated[Literal["auto", "nccl", "gloo"], NOT_COMPARED] = "auto"
    """Communication backend; auto selects nccl with CUDA and gloo without."""
    distributed_timeout_minutes: Annotated[float, Above(0), AtMost(10**7), NOT_COMPARED] = 10.0
    """Timeout of a collective; a run that exceeds it ends with an error."""
    rendezvous_timeout_minutes: Annotated[float, Above(0), AtMost(10**7), NOT_COMPARED] = 10.0
    """How long a rank waits at start-up for the others; after that it ends with an error that names the missing
    ranks."""
