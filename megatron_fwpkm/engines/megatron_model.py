"""What the engines that train Megatron's model share: the loss of a micro-batch, evaluation, reports, fast weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import Tensor, nn

from ..checkpoint.fast_weight_store import FastWeightStore
from ..checkpoint.record import FAST_WEIGHTS_FOLDER, Layout
from ..checkpoint.slow_weights import unwrap
from ..config import PretrainConfig
from ..config.derived import global_batch_size, outlives_sequence
from ..config.memories import is_reset, memory_numbers
from ..config.pswa import is_windowed, pswa_window
from ..config.saved_replicas import averaged_after
from ..distributed.megatron_versions import part_of_context_rank
from ..distributed.ranks import world_size
from ..layers.training_window import set_training_windows
from ..models.builder import memory_layers, preserve_fast_weights
from .base import Batch
from .forward_time import ForwardTime
from .losses import Losses, mean_over_batches, mean_over_tokens
from .megatron_groups import memory_ranks
from .megatron_replicas import memories_are_equal
from .memory_report import MemoryReport, collect_memory_report


class MegatronModelEngine(ABC):
    """An engine over Megatron's parallel state. The rest of `base.Engine` is a subclass's own."""

    scheduler: OptimizerParamScheduler

    def __init__(self, config: PretrainConfig, device: torch.device, modules: list[nn.Module]) -> None:
        """`modules` hold this rank's model, one per chunk of an interleaved pipeline."""
        self._config = config
        self._device = device
        self._modules = modules
        self.data_parallel_rank: int = parallel_state.get_data_parallel_rank()
        self.pipeline_stage: int = parallel_state.get_pipeline_model_parallel_rank()
        self._forward_time = ForwardTime(device)
        self.layout = current_layout(config)
        one_round = config.training.micro_batch_size * self.layout.data_parallel
        self._num_microbatches = global_batch_size(config, self.layout.data_parallel) // one_round
        self.num_parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())
        self.memories = memory_layers(modules)
        self._store = FastWeightStore(config.fwpkm, config.training.seed, memory_ranks())

    @abstractmethod
    def _run_micro_batches(self, batches: Iterator[Batch], number: int, *, forward_only: bool) -> Tensor | None:
        """[m, 3] sums of this rank's micro-batches (`losses.weighted_loss`), None where another rank has them."""

    def _begin_step(self, samples: int | None) -> int:
        """Reset what a step resets; returns the micro-batches of its `samples` sequences, or of a global batch."""
        self._set_training(True)
        self._reset_for_step()
        if self._config.fwpkm.pswa_probability:
            windowed = is_windowed(self._config, self._iteration())
            set_training_windows(self._modules, pswa_window(self._config) if windowed else None)
        if samples is None:
            return self._num_microbatches
        return samples // (self._config.training.micro_batch_size * self.layout.data_parallel)

    def _reset_for_step(self) -> None:
        """Put the initial memory back where it is reset every step."""
        for memory in self.memories:
            if memory.block_options.reset == "step":
                memory.reset()

    def _iteration(self) -> int:
        """Iterations of the whole run so far, resumed ones included."""
        return int(self.scheduler.num_steps)

    @torch.no_grad()
    def evaluate(
        self, batches: Iterable[Batch], iterations: int, stop: Callable[[], bool] | None = None
    ) -> Losses | None:
        """Mean losses per token over `iterations` global batches, with the memory reading and writing as in training.

        Whatever it writes is undone bit for bit. Every evaluation begins with the memory as it stands. None where
        `stop`, which is asked before every batch, says yes.
        """
        self._set_training(False)
        source = iter(batches)
        collected: list[Tensor] = []
        stopped = False
        with preserve_fast_weights(self._modules):
            for _ in range(iterations):
                if stopped := stop is not None and stop():
                    break
                self._reset_for_step()
                sums = self._run_micro_batches(source, self._num_microbatches, forward_only=True)
                if sums is not None:
                    collected.append(sums)
        self._set_training(True)
        if stopped:
            return None
        return self._agree_on(mean_over_tokens(torch.cat(collected)) if collected else None)

    def _set_training(self, training: bool) -> None:
        for module in self._modules:
            module.train(training)

    def _token_losses(self, model: nn.Module, loaded: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of every token of this rank's part of a batch, and that part on the device."""
        # On the CPU, where attention and memories cut the sequences by them without waiting for the device.
        starts = loaded["document_starts"]
        documents = starts if self._config.data.reset_attention_mask else None
        batch = {name: tensor.to(self._device, non_blocking=True) for name, tensor in loaded.items()}
        if is_reset(self._config, "document"):
            unwrap(model).set_document_starts(starts)  # type: ignore[operator]
        if self._config.parallel.context_parallel_size > 1:  # memories need whole documents, the rest its own pieces
            batch = part_of_context_rank(batch)
        timed = self._config.faults.log_straggler and model.training
        with self._forward_time.measured() if timed else nullcontext():
            return model(batch["tokens"], batch["position_ids"], documents, labels=batch["labels"]), batch

    def _sum_over_context(self, sums: Tensor) -> Tensor:
        """Sum over the ranks that share this rank's sequences."""
        if self._config.parallel.context_parallel_size > 1:
            dist.all_reduce(sums, group=parallel_state.get_context_parallel_group())
        return sums

    def _losses_of_step(self, sums: Tensor | None) -> Losses:
        """The losses as they were optimised, of this rank's [m, 3] sums."""
        if not self._config.training.calculate_per_token_loss:
            return self._agree_on(mean_over_batches(sums) if sums is not None else None)
        known = torch.zeros(1, 3, device=self._device) if sums is None else sums.sum(dim=0, keepdim=True)
        if world_size() > 1:  # ranks with the same tokens count them alike, so that their number goes out
            dist.all_reduce(known)
        return Losses(*mean_over_tokens(known).tolist())

    def _agree_on(self, losses: Tensor | None) -> Losses:
        """Mean of [2] losses over the ranks that have them (the last pipeline stage of every replica)."""
        known = torch.zeros(2, device=self._device) if losses is None else losses
        if world_size() > 1:
            dist.all_reduce(known)
            known = known / (world_size() // parallel_state.get_pipeline_model_parallel_world_size())
        loss, lm_loss = known.tolist()
        return Losses(loss, lm_loss)

    def forward_seconds(self) -> float:
        """Seconds of forward passes in training since the last call, with --log-straggler."""
        return self._forward_time.take()

    def memory_report(self) -> MemoryReport:
        """Statistics of every memory layer over all ranks."""
        return collect_memory_report(self.memories, memory_numbers(self._config), self._device)

    def _save_fast_weights(self, folder: Path) -> None:
        """Write the memories of this replica into a checkpoint folder; called by every rank."""
        if memory_numbers(self._config):
            self._store.save(folder / FAST_WEIGHTS_FOLDER, self.memories, equal=self._replicas_are_equal())

    def _replicas_are_equal(self) -> bool:
        """Whether all replicas have the same tables because they were averaged after this iteration."""
        averaged = self.layout.data_parallel > 1 and averaged_after(self._config.fwpkm, self._iteration())
        return averaged and memories_are_equal(self.memories, self._device)

    def _load_fast_weights(self, folder: Path) -> list[str]:
        """Read them back; called by every rank. Returns notices for the log."""
        if not memory_numbers(self._config):
            return []
        notice = self._store.load(folder / FAST_WEIGHTS_FOLDER, self.memories)
        for memory in self.memories:
            # What documents and sequences begin with, also if the saved run had no resets.
            if not outlives_sequence(memory.block_options):
                memory.reset()
        return [notice] if notice else []

    @staticmethod
    def _in_folder(folder: Path) -> None:
        """Make a folder before any rank writes into it."""
        folder.mkdir(parents=True, exist_ok=True)
        if world_size() > 1:
            dist.barrier()

    def begin_at(self, iteration: int) -> None:
        """Move the schedule to where it stands after so many steps."""
        self.scheduler.num_steps = 0
        self.scheduler.step(iteration)

    def random_state(self) -> dict[str, Any]:
        """States of Megatron's tracker of generators."""
        return {name: state.clone() for name, state in get_cuda_rng_tracker().get_states().items()}

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Put back what `random_state` gave."""
        get_cuda_rng_tracker().set_states(state)

    def peak_device_memory(self) -> int | None:
        """Peak bytes that torch has allocated on the GPU, None on the CPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None


def current_layout(config: PretrainConfig) -> Layout:
    """The layout of the running processes under Megatron's parallel state."""
    return Layout(
        world_size=world_size(),
        tensor_parallel=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_parallel=parallel_state.get_pipeline_model_parallel_world_size(),
        data_parallel=parallel_state.get_data_parallel_world_size(),
        distributed_optimizer=config.parallel.use_distributed_optimizer,
        bf16=config.training.bf16,
    )
