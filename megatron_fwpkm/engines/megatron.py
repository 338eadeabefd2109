"""The engine on megatron.core: one optimizer step, one evaluation, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.module import Float16Module
from megatron.core.utils import get_batch_on_this_cp_rank
from torch import Tensor, nn

from ..checkpoint.background import BackgroundWriter
from ..checkpoint.fast_weight_store import FastWeightStore
from ..checkpoint.record import FAST_WEIGHTS_FOLDER, MODEL_FOLDER, Layout
from ..checkpoint.slow_weights import load_slow_weights, request_to_save_slow_weights, save_slow_weights, unwrap
from ..config import PretrainConfig
from ..config.derived import global_batch_size
from ..distributed.ranks import world_size
from ..models.builder import build_model, memory_layers, preserve_fast_weights
from .base import Batch, StepResult
from .learning_rate import build_scheduler
from .losses import Losses, mean_over_batches, mean_over_tokens, summed_loss, weighted_loss
from .megatron_groups import memory_ranks
from .megatron_optimizer import build_optimizer
from .megatron_replicas import keep_replicas_together
from .memory_report import MemoryReport, collect_memory_report


class MegatronEngine:
    """GPT with memories under megatron.core: DDP, its optimizers, its schedules of micro-batches. See `base.Engine`."""

    def __init__(self, config: PretrainConfig, padded_vocab_size: int, device: torch.device) -> None:
        """Build model, optimizer and schedule; Megatron's parallel state must exist.

        `padded_vocab_size` is the number of rows of the embedding over all ranks.
        """
        self._config = config
        self._device = device
        self.data_parallel_rank: int = parallel_state.get_data_parallel_rank()
        self.layout = current_layout(config)
        one_round = config.training.micro_batch_size * self.layout.data_parallel
        self._num_microbatches = global_batch_size(config, self.layout.data_parallel) // one_round
        self.chunks = build_chunks(config, padded_vocab_size, device)
        self.num_parameters = sum(parameter.numel() for chunk in self.chunks for parameter in chunk.parameters())
        self.optimizer = build_optimizer(config, self.chunks)
        self.scheduler = build_scheduler(
            self.optimizer,
            config.optimizer,
            config.training.train_iters,
            from_checkpoint=config.checkpoint.use_checkpoint_opt_param_scheduler,
        )
        self.memories = memory_layers(self.chunks)
        self._store = FastWeightStore(config.fwpkm, config.training.seed, memory_ranks())
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
        self._set_training(True)
        if self._config.fwpkm.reset == "step":
            for memory in self.memories:
                memory.reset()
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        training = self._config.training
        number = self._num_microbatches
        if samples is not None:
            number = samples // (training.micro_batch_size * parallel_state.get_data_parallel_world_size())
        sums = self._run_micro_batches(batches, number, forward_only=False)
        lr = self.optimizer.param_groups[0]["lr"]
        succeeded, grad_norm, _ = self.optimizer.step()
        assert succeeded, "only loss scaling (fp16) skips steps"
        self.scheduler.step(1)
        keep_replicas_together(self._config, self._iteration(), self.memories, self.chunks, self._device)
        losses = self._losses_of_step(sums)
        return StepResult(losses, float(grad_norm), float(lr))

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
        with preserve_fast_weights(self.chunks):
            for _ in range(iterations):
                if stopped := stop is not None and stop():
                    break
                if self._config.fwpkm.reset == "step":
                    for memory in self.memories:
                        memory.reset()
                sums = self._run_micro_batches(source, self._num_microbatches, forward_only=True)
                if sums is not None:
                    collected.append(sums)
        self._set_training(True)
        if stopped:
            return None
        return self._agree_on(mean_over_tokens(torch.cat(collected)) if collected else None)

    def _set_training(self, training: bool) -> None:
        for chunk in self.chunks:
            chunk.train(training)

    def _run_micro_batches(self, batches: Iterator[Batch], number: int, *, forward_only: bool) -> Tensor | None:
        """[m, 3] sums of this rank's micro-batches on the last pipeline stage, None elsewhere.

        Every stage reads its own copy of the data, and of a stage's chunks each walks through all micro-batches.
        """
        source: Iterator[Batch] | list[Iterator[Batch]] = batches
        if len(self.chunks) > 1:
            step = list(islice(batches, number))
            source = [iter(step) for _ in self.chunks]
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
        loaded = next(batches)
        # On the CPU, where attention and memories cut the sequences by them without waiting for the device.
        starts = loaded["document_starts"]
        documents = starts if self._config.data.reset_attention_mask else None
        batch = {name: tensor.to(self._device, non_blocking=True) for name, tensor in loaded.items()}
        if self._config.fwpkm.reset == "document":
            unwrap(model).set_document_starts(starts)  # type: ignore[operator]
        if self._config.parallel.context_parallel_size > 1:  # memories need whole documents, the rest its own pieces
            batch = get_batch_on_this_cp_rank(batch)
        output = model(batch["tokens"], batch["position_ids"], documents, labels=batch["labels"])

        def loss(token_losses: Tensor) -> tuple[Any, ...]:
            """What Megatron wants of a loss function: loss, tokens where they are counted, sums to report."""
            if self._config.training.calculate_per_token_loss:
                total, tokens, sums = summed_loss(token_losses, batch["loss_mask"], self._sum_over_context)
                return total, tokens, {"sums": sums}
            value, sums = weighted_loss(token_losses, batch["loss_mask"], self._sum_over_context)
            return value, {"sums": sums}

        return output, loss

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

    def memory_report(self) -> MemoryReport:
        """Statistics of every memory layer over all ranks."""
        return collect_memory_report(self.memories, self._config.fwpkm.layer_numbers, self._device)

    def save(self, folder: Path) -> None:
        """Write slow weights, optimizer, schedule and fast weights into a checkpoint folder; called by every rank."""
        self._in_folder(folder / MODEL_FOLDER)
        save_slow_weights(folder / MODEL_FOLDER, self.chunks, self.optimizer, self.scheduler)
        if self._config.fwpkm.layer_numbers:
            self._store.save(folder / FAST_WEIGHTS_FOLDER, self.memories)

    def save_in_background(self, folder: Path) -> BackgroundWriter:
        """Begin to write the same as `save`, as it is now: its writers are forked."""
        self._in_folder(folder / MODEL_FOLDER)
        self._in_folder(folder / FAST_WEIGHTS_FOLDER)
        requests = [request_to_save_slow_weights(folder / MODEL_FOLDER, self.chunks, self.optimizer, self.scheduler)]
        if self._config.fwpkm.layer_numbers:
            requests.append(self._store.request_to_save(folder / FAST_WEIGHTS_FOLDER, self.memories))
        return BackgroundWriter(requests)

    @staticmethod
    def _in_folder(folder: Path) -> None:
        """Make a folder before any rank writes into it."""
        folder.mkdir(parents=True, exist_ok=True)
        if world_size() > 1:
            dist.barrier()

    def load(self, folder: Path, *, weights_only: bool) -> list[str]:
        """Read slow weights, fast weights and, unless `weights_only`, optimizer and schedule; called by every rank."""
        if weights_only:
            notices = load_slow_weights(folder / MODEL_FOLDER, self.chunks)
            self.optimizer.reload_model_params()
        else:
            notices = load_slow_weights(folder / MODEL_FOLDER, self.chunks, self.optimizer, self.scheduler)
        if not self._config.fwpkm.layer_numbers:
            return notices
        notice = self._store.load(folder / FAST_WEIGHTS_FOLDER, self.memories)
        if self._config.fwpkm.reset == "document":  # what documents begin with, also if the saved run had no resets
            for memory in self.memories:
                memory.reset()
        return [*notices, notice] if notice else notices

    def random_state(self) -> dict[str, Any]:
        """States of Megatron's tracker of generators."""
        return {name: state.clone() for name, state in get_cuda_rng_tracker().get_states().items()}

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Put back what `random_state` gave."""
        get_cuda_rng_tracker().set_states(state)

    def peak_device_memory(self) -> int | None:
        """Peak bytes that torch has allocated on the GPU, None on the CPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None


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
