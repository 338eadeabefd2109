"""The engine on megatron.core: one optimizer step, one evaluation, saving and loading."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor, nn

from ..checkpoint.background import BackgroundWriter
from ..checkpoint.record import FAST_WEIGHTS_FOLDER, MODEL_FOLDER
from ..checkpoint.slow_weights import load_slow_weights, request_to_save_slow_weights, save_slow_weights
from ..config import PretrainConfig
from ..config.memories import memory_numbers
from ..distributed.ranks import any_rank
from ..models.builder import build_model, preserve_fast_weights
from ..ops.named_ranges import named_range
from .base import Batch, StepResult
from .learning_rate import build_scheduler
from .losses import summed_loss, weighted_loss
from .megatron_model import MegatronModelEngine
from .megatron_optimizer import build_optimizer
from .megatron_replicas import keep_replicas_together
from .memory_graphs import capture_memories


class MegatronEngine(MegatronModelEngine):
    """GPT with memories under megatron.core: DDP, its optimizers, its schedules of micro-batches. See `base.Engine`."""

    def __init__(self, config: PretrainConfig, padded_vocab_size: int, device: torch.device) -> None:
        """Build model, optimizer and schedule; Megatron's parallel state must exist.

        `padded_vocab_size` is the number of rows of the embedding over all ranks.
        """
        self.chunks = build_chunks(config, padded_vocab_size, device)
        super().__init__(config, device, list(self.chunks))
        capture_memories(config, self.memories, self.layout.data_parallel, self.pipeline_stage)
        self.optimizer = build_optimizer(config, self.chunks)
        self.scheduler = build_scheduler(
            self.optimizer,
            config.optimizer,
            config.training.train_iters,
            from_checkpoint=config.checkpoint.use_checkpoint_opt_param_scheduler,
        )
        model_config = self.chunks[0].config
        model_config.finalize_model_grads_func = finalize_model_grads
        model_config.grad_scale_func = self.optimizer.scale_loss
        if config.parallel.overlap_grad_reduce:
            no_sync = [chunk.no_sync for chunk in self.chunks]
            model_config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]

    def train_step(self, batches: Iterator[Batch], samples: int | None = None) -> StepResult:
        """Forward and backward over the step's micro-batches, then the optimizer and the schedule.

        `samples` are the step's sequences on all replicas together, by default those of a global batch.

        With --fwpkm-reset step the initial memory is put back first.
        """
        number = self._begin_step(samples)
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        lr = float(self.optimizer.param_groups[0]["lr"])
        if self._config.faults.on_nan == "skip":
            sums, skipped = self._run_undoable(batches, number)
            if skipped is not None:
                self.scheduler.step(1)
                return replace(skipped, lr=lr)
        else:
            sums = self._run_micro_batches(batches, number, forward_only=False)
        with named_range("optimizer"):
            succeeded, grad_norm, _ = self.optimizer.step()
        assert succeeded, "only loss scaling (fp16) skips steps"
        self.scheduler.step(1)
        keep_replicas_together(self._config, self._iteration(), self.memories, self.chunks, self._device)
        losses = self._losses_of_step(sums)
        return StepResult(losses, float(grad_norm), lr)

    def _run_undoable(self, batches: Iterator[Batch], number: int) -> tuple[Tensor | None, StepResult | None]:
        """As `_run_micro_batches`; what the memories wrote is undone where a number is not finite on any rank.

        Then the second value tells the numbers of the step, which must not be taken.
        """
        finite = False
        with preserve_fast_weights(self._modules, keep=lambda: finite):
            sums = self._run_micro_batches(batches, number, forward_only=False)
            losses = self._losses_of_step(sums)
            self.optimizer.prepare_grads()
            norm = float(self.optimizer.get_grad_norm())
            numbers = (losses.loss, losses.lm_loss, norm)
            good = all(map(math.isfinite, numbers)) and all(memory.wrote_only_finite() for memory in self.memories)
            finite = not any_rank([not good], self._device)[0]
        return sums, None if finite else StepResult(losses, norm, math.nan, skipped=True)

    def _run_micro_batches(self, batches: Iterator[Batch], number: int, *, forward_only: bool) -> Tensor | None:
        """[m, 3] sums of this rank's micro-batches on the last pipeline stage, None elsewhere.

        Every stage reads its own copy of the data, and of a stage's chunks each walks through all micro-batches.
        """
        source: Iterator[Batch] | list[Iterator[Batch]] = batches
        if len(self.chunks) > 1:
            with named_range("data"):
                step = list(islice(batches, number))
            source = [iter(step) for _ in self.chunks]
        with named_range("forward" if forward_only else "forward and backward"):
            outputs = get_forward_backward_func()(
                forward_step_func=self._forward_step,
                data_iterator=source,
                model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
                num_microbatches=number,
                seq_length=self._config.model.seq_length,
                micro_batch_size=self._config.training.micro_batch_size,
                forward_only=forward_only,
            )
        return torch.stack([output["sums"] for output in outputs]) if outputs else None

    def _forward_step(self, batches: Iterator[Batch], model: nn.Module) -> tuple[Tensor, Any]:
        with named_range("data"):
            loaded = next(batches)
        output, batch = self._token_losses(model, loaded)

        def loss(token_losses: Tensor) -> tuple[Any, ...]:
            """What Megatron wants of a loss function: loss, tokens where they are counted, sums to report."""
            if self._config.training.calculate_per_token_loss:
                total, tokens, sums = summed_loss(token_losses, batch["loss_mask"], self._sum_over_context)
                return total, tokens, {"sums": sums}
            value, sums = weighted_loss(token_losses, batch["loss_mask"], self._sum_over_context)
            return value, {"sums": sums}

        return output, loss

    def save(self, folder: Path) -> None:
        """Write slow weights, optimizer, schedule and fast weights into a checkpoint folder; called by every rank."""
        self._in_folder(folder / MODEL_FOLDER)
        save_slow_weights(folder / MODEL_FOLDER, self.chunks, self.optimizer, self.scheduler)
        self._save_fast_weights(folder)

    def save_in_background(self, folder: Path) -> BackgroundWriter:
        """Begin to write the same as `save`, as it is now: its writers are forked."""
        self._in_folder(folder / MODEL_FOLDER)
        self._in_folder(folder / FAST_WEIGHTS_FOLDER)
        requests = [request_to_save_slow_weights(folder / MODEL_FOLDER, self.chunks, self.optimizer, self.scheduler)]
        if memory_numbers(self._config):
            equal = self._replicas_are_equal()
            requests.append(self._store.request_to_save(folder / FAST_WEIGHTS_FOLDER, self.memories, equal=equal))
        return BackgroundWriter(requests)

    def load(self, folder: Path, *, weights_only: bool) -> list[str]:
        """Read slow weights, fast weights and, unless `weights_only`, optimizer and schedule; called by every rank."""
        if weights_only:
            notices = load_slow_weights(folder / MODEL_FOLDER, self.chunks)
            self.optimizer.reload_model_params()
        else:
            notices = load_slow_weights(folder / MODEL_FOLDER, self.chunks, self.optimizer, self.scheduler)
        return notices + self._load_fast_weights(folder)


def build_chunks(config: PretrainConfig, padded_vocab_size: int, device: torch.device) -> list[DistributedDataParallel]:
    """This rank's model, in DDP: one chunk, or one per virtual stage of an interleaved pipeline.

    `padded_vocab_size` is the number of rows of the embedding over all ranks. Megatron's parallel state must exist.
    """
    virtual = config.parallel.num_virtual_stages_per_pipeline_rank
    stages = [None] if virtual == 1 else list(range(virtual))
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=not config.parallel.grad_reduce_in_bf16,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
    )
    chunks: list[DistributedDataParallel] = []
    for stage in stages:
        position = {"ignore_virtual": stage is None, "vp_stage": stage}
        core = build_model(
            config,
            padded_vocab_size,
            pre_process=parallel_state.is_pipeline_first_stage(**position),
            post_process=parallel_state.is_pipeline_last_stage(**position),
            vp_stage=stage,
        ).to(device)
        assert not core.config.batch_p2p_comm, "batched sends give an interleaved pipeline wrong gradients, silently"
        model: nn.Module = Float16Module(core.config, core) if config.training.bf16 else core
        # The first chunk's gradients come last, so only they are reduced in buckets as they come.
        chunks.append(DistributedDataParallel(core.config, ddp, model, disable_bucketing=bool(chunks)))
    for chunk in chunks:
        chunk.broadcast_params()
    return chunks
