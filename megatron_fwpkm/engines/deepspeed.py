"""The engine on DeepSpeed: Megatron's model, its gradients and optimizer states sharded by ZeRO."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ..checkpoint.optimizer_resume import own_options_kept
from ..checkpoint.record import MODEL_FOLDER
from ..checkpoint.slow_weights import load_slow_weights, restore_schedule, save_weights
from ..config import PretrainConfig
from ..config.deepspeed_options import deepspeed_options, zero_stage
from ..config.derived import embedding_rows
from ..models.builder import build_model
from ..ops.named_ranges import named_range
from .base import Batch, StepResult
from .deepspeed_checkpoint import ShardedLayout, load_state, save_state
from .deepspeed_library import import_deepspeed
from .deepspeed_optimizer import build_adamw, sum_partial_gradients
from .deepspeed_shards import leave_out_empty_states, universal_description, whole_weights
from .learning_rate import build_scheduler
from .losses import weighted_loss
from .megatron_model import MegatronModelEngine
from .megatron_mpu import ModelParallelUnit
from .megatron_replicas import keep_replicas_together


class DeepSpeedEngine(MegatronModelEngine):
    """GPT with memories under DeepSpeed. See `base.Engine`."""

    def __init__(self, config: PretrainConfig, vocab_size: int, device: torch.device) -> None:
        """Build model, optimizer and schedule; Megatron's parallel state must exist.

        Raises ValueError where DeepSpeed is not installed or refuses its configuration.
        """
        self._deepspeed = deepspeed = import_deepspeed(device)
        self.model = build_model(config, embedding_rows(config, vocab_size)).to(device)
        if config.training.bf16:
            self.model.bfloat16()  # buffers, too, as under Megatron's engine
        super().__init__(config, device, [self.model])
        leave_out_empty_states(self.model)
        self._units = units = ModelParallelUnit()
        sum_partial_gradients(self.model, units.get_tensor_model_parallel_group())
        optimizer = build_adamw(config, self.model)
        if zero_stage(config) == 3:
            # Such modules use the weights of their parts themselves: all of them are gathered with the module.
            whole = {type(part) for part in self.model.modules() if getattr(part, "uses_weights_of_parts", False)}
            deepspeed.utils.set_z3_leaf_modules(self.model, list(whole), raise_if_not_found=False)
        self._engine, self.optimizer, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=optimizer,
            config=deepspeed_options(config, units.get_data_parallel_world_size()),
            mpu=units,
            dist_init_required=False,
        )
        self._modules = [self._engine]
        self.scheduler = build_scheduler(
            self.optimizer,
            config.optimizer,
            config.training.train_iters,
            from_checkpoint=config.checkpoint.use_checkpoint_opt_param_scheduler,
        )

    def train_step(self, batches: Iterator[Batch], samples: int | None = None) -> StepResult:
        """Forward and backward over the step's micro-batches, then the optimizer and the schedule.

        `samples` are the step's sequences on all replicas together, by default those of a global batch.
        """
        number = self._begin_step(samples)
        sums = self._run_micro_batches(batches, number, forward_only=False)
        lr = self.optimizer.param_groups[0]["lr"]
        norm = self._norm_without_sharding()
        with named_range("optimizer"):
            self._engine.step()
        self.scheduler.step(1)
        keep_replicas_together(self._config, self._iteration(), self.memories, [self.model], self._device)
        norm = self._engine.get_global_grad_norm() if norm is None else norm
        return StepResult(self._losses_of_step(sums), float(norm), float(lr))

    def _norm_without_sharding(self) -> float | None:
        """The norm of the gradients, which DeepSpeed does not tell at stage 0."""
        if zero_stage(self._config) > 0:
            return None
        # Clipping to infinity only measures.
        norm = self._deepspeed.runtime.utils.clip_grad_norm_(self.model.parameters(), math.inf, mpu=self._units)
        return float(norm)

    def _run_micro_batches(self, batches: Iterator[Batch], number: int, *, forward_only: bool) -> Tensor:
        """[m, 3] sums of this rank's micro-batches."""
        collected = []
        with named_range("forward" if forward_only else "forward and backward"):
            for left in reversed(range(number)):
                self._engine.set_gradient_accumulation_boundary(left == 0)
                with named_range("data"):
                    loaded = next(batches)
                token_losses, batch = self._token_losses(self._engine, loaded)
                loss, sums = weighted_loss(token_losses, batch["loss_mask"], self._sum_over_context)
                collected.append(sums)
                if not forward_only:
                    mean = loss * self._config.parallel.context_parallel_size / number
                    self._engine.backward(mean, scale_wrt_gas=False)
        return torch.stack(collected)

    def _sharded_layout(self) -> ShardedLayout:
        return ShardedLayout(
            zero_stage(self._config), self.layout.tensor_parallel, self._units.get_data_parallel_world_size()
        )

    def save(self, folder: Path) -> None:
        """Write DeepSpeed's own files, the weights once more in a form for any layout, and the fast weights."""
        self._in_folder(folder / MODEL_FOLDER)
        writes = self._units.get_data_parallel_rank() == 0
        with whole_weights(self.model, self._deepspeed.zero.GatheredParameters, kept=writes):
            save_weights(folder / MODEL_FOLDER, [self.model])
        client_state = {
            "schedule": self.scheduler.state_dict(),
            "universal_checkpoint_info": universal_description(self.model),
        }
        save_state(self._engine, folder, self._sharded_layout(), client_state)
        self._save_fast_weights(folder)

    def save_in_background(self, folder: Path) -> NoReturn:
        """Never called: --async-save is refused."""
        raise AssertionError("--async-save is refused at start-up")

    def load(self, folder: Path, *, weights_only: bool) -> list[str]:
        """Read weights, fast weights and, unless `weights_only`, optimizer and schedule; called by every rank."""
        if weights_only:
            self._load_weights(folder)
            return self._load_fast_weights(folder)
        room = Path(self._config.checkpoint.save or folder.parent)
        with own_options_kept(self.optimizer):
            state = load_state(self._engine, self.model, folder, self._sharded_layout(), room)
        return restore_schedule(self.scheduler, state["schedule"]) + self._load_fast_weights(folder)

    def _load_weights(self, folder: Path) -> None:
        """Read the weights, whichever engine wrote them, into the model and the optimizer's copies."""
        parameters = list(self.model.parameters())
        with self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            load_slow_weights(folder / MODEL_FOLDER, [self.model])
        if zero_stage(self._config) > 0:
            self.optimizer.refresh_fp32_params()
