"""Megatron's parallel state as DeepSpeed asks for it."""

from __future__ import annotations

import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed import ProcessGroup


class ModelParallelUnit:
    """The `mpu` of `deepspeed.initialize`: Megatron's module lacks a few of the names that DeepSpeed calls.

    ZeRO shards over the data-parallel ranks, those that share a sequence included: their gradients are summed, too.
    """

    def get_data_parallel_group(self) -> ProcessGroup:
        """Ranks with the same part of the model."""
        return parallel_state.get_data_parallel_group(with_context_parallel=True)

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their numbers among all ranks."""
        return list(dist.get_process_group_ranks(self.get_data_parallel_group()))

    def get_data_parallel_world_size(self) -> int:
        """How many they are."""
        return self.get_data_parallel_group().size()

    def get_data_parallel_rank(self) -> int:
        """This rank's number among them."""
        return self.get_data_parallel_group().rank()

    def get_tensor_model_parallel_group(self) -> ProcessGroup:
        """Ranks that share every layer."""
        return parallel_state.get_tensor_model_parallel_group()

    def get_tensor_model_parallel_world_size(self) -> int:
        """How many they are."""
        return self.get_tensor_model_parallel_group().size()

    def get_tensor_model_parallel_rank(self) -> int:
        """This rank's number among them."""
        return self.get_tensor_model_parallel_group().rank()

    def get_tensor_model_parallel_src_rank(self) -> int:
        """The first of them, by its number among all ranks."""
        return int(parallel_state.get_tensor_model_parallel_src_rank())

    def get_pipeline_model_parallel_world_size(self) -> int:
        """Stages; 1, for others are refused."""
        return int(parallel_state.get_pipeline_model_parallel_world_size())

    def get_pipeline_model_parallel_rank(self) -> int:
        """This rank's stage."""
        return int(parallel_state.get_pipeline_model_parallel_rank())

    def get_model_parallel_group(self) -> ProcessGroup:
        """Ranks that hold one replica: gradient norms are summed over them, and files are named by them."""
        return parallel_state.get_model_parallel_group()

    def get_model_parallel_world_size(self) -> int:
        """How many they are."""
        return self.get_model_parallel_group().size()

    def get_model_parallel_rank(self) -> int:
        """This rank's number among them."""
        return self.get_model_parallel_group().rank()
