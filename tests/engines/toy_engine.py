"""An engine of plain torch for one process, and a program that trains with it: `... toy_engine PRETRAIN-FLAGS...`.

With the variable KILLED_AT the process kills itself in that step, as the kernel does where memory runs out.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megatron_fwpkm.checkpoint.record import Layout
from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.distributed.startup import World
from megatron_fwpkm.engines.base import Batch, StepResult
from megatron_fwpkm.engines.losses import Losses
from megatron_fwpkm.engines.memory_report import MemoryReport


class FinishedSave:
    """A save that was done at once."""

    def finish(self, *, wait: bool) -> bool:
        return True

    def abort(self) -> None: ...


class ToyEngine:
    """Predicts every token from the one before it."""

    layout = Layout(1, 1, 1, 1, distributed_optimizer=False, bf16=False)
    data_parallel_rank = 0
    pipeline_stage = 0

    def __init__(self, config: PretrainConfig, vocab_size: int) -> None:
        width, training = config.model.hidden_size, config.training
        self.model = nn.Sequential(nn.Embedding(vocab_size, width), nn.Dropout(0.1), nn.Linear(width, vocab_size))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.optimizer.lr)
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.micro_batches = (training.global_batch_size or training.micro_batch_size) // training.micro_batch_size
        self.steps = 0

    def _loss(self, batches: Iterable[Batch]) -> torch.Tensor:
        losses = [
            nn.functional.cross_entropy(self.model(batch["tokens"]).flatten(0, 1), batch["labels"].flatten())
            for batch in islice(batches, self.micro_batches)
        ]
        return torch.stack(losses).mean()

    def forward_seconds(self) -> float:
        return 0.0

    def train_step(self, batches: Iterator[Batch], samples: int | None = None) -> StepResult:
        self.steps += 1
        if str(self.steps) == os.environ.get("KILLED_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        loss = self._loss(batches)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return StepResult(Losses(loss.item(), loss.item()), norm.item(), self.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], iterations: int, stop: Callable[[], bool] | None = None) -> Losses:
        self.model.eval()
        mean = torch.stack([self._loss(batches) for _ in range(iterations)]).mean().item()
        self.model.train()
        return Losses(mean, mean)

    def memory_report(self) -> MemoryReport:
        return MemoryReport({}, {}, {})

    def save(self, folder: Path) -> None:
        torch.save([self.model.state_dict(), self.optimizer.state_dict(), self.steps], folder / "toy.pt")

    def save_in_background(self, folder: Path) -> FinishedSave:
        self.save(folder)
        return FinishedSave()

    def load(self, folder: Path, *, weights_only: bool) -> list[str]:
        model, optimizer, self.steps = torch.load(folder / "toy.pt", weights_only=True)
        self.model.load_state_dict(model)
        if not weights_only:
            self.optimizer.load_state_dict(optimizer)
        return []

    def begin_at(self, iteration: int) -> None:
        self.steps = iteration

    def random_state(self) -> dict[str, Any]:
        return {}

    def set_random_state(self, state: dict[str, Any]) -> None: ...

    def peak_device_memory(self) -> int | None:
        return None


@contextmanager
def build_toy(config: PretrainConfig, world: World, vocab_size: int) -> Iterator[ToyEngine]:
    """The toy engine, as `engines.base.EngineBuilder` wants it."""
    torch.manual_seed(config.training.seed)
    yield ToyEngine(config, vocab_size)


if __name__ == "__main__":
    from megatron_fwpkm.config.cli import run_cli
    from megatron_fwpkm.config.loading import parse_pretrain
    from megatron_fwpkm.training.pretraining import run

    sys.exit(run_cli(lambda argv: run(parse_pretrain(argv), build_toy), sys.argv[1:]))
