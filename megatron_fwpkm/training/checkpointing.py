"""Save and resume a run: engine, random states, data position, configuration and tokenizer in one folder."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.checkpoint_errors import explained
from ..checkpoint.compatibility import changed_model, check_resumable, check_same_schedule
from ..checkpoint.lock import run_lock
from ..checkpoint.manager import CheckpointManager, folder_name
from ..checkpoint.record import CONFIG_NAME, RunRecord, amend_record, read_record
from ..checkpoint.rng import load_rng_state, save_rng_state
from ..checkpoint.saved_config import read_saved_config
from ..checkpoint.source import find_source
from ..config import PretrainConfig
from ..config.checkpoint_size import checkpoint_bytes
from ..config.derived import embedding_rows
from ..config.loading import Resolved
from ..data.tokenizers import Tokenizer
from ..distributed.ranks import on_rank_zero
from ..distributed.startup import World
from ..engines.base import BackgroundSave, Engine

_RECOVERY = ("skipped_samples", "recoveries", "recent_losses", "spike_steps")
"""What a progress knows of faults that the run has overcome."""
_LATER = (*_RECOVERY, "validation")
"""Fields that checkpoints of earlier versions lack."""

logger = logging.getLogger("megatron_fwpkm")


def folder_bytes(folder: str | None) -> int:
    """Bytes of all files in a checkpoint's folder; 0 without one."""
    return 0 if folder is None else sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


@dataclass
class TrainingProgress:
    """The progress of a run and the state of its logs and guards; saved with every checkpoint."""

    iteration: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    best_loss: float | None = None
    window: list[tuple[float, float]] = field(default_factory=list)
    """(loss, lm loss) of the iterations since the last log record."""
    guard: dict[str, list[float]] = field(default_factory=dict)
    dataset_windows: int = 0
    """Windows of the training dataset, which the order of the data depends on; 0 before it is known."""
    evaluation_cut_off: bool = False
    """Whether the run was stopped while it evaluated the validation data of this iteration."""
    validation: dict[str, float] | None = None
    """The last validation: `iteration` and `lm_loss`."""
    skipped_samples: int = 0
    """Samples of the data order that rewinds have left out; they are not among the consumed ones."""
    recoveries: int = 0
    """Skipped steps and rewinds so far."""
    recent_losses: list[float] = field(default_factory=list)
    """With --loss-spike-factor: the losses whose median is the yardstick."""
    spike_steps: int = 0
    """Consecutive iterations whose loss was too high."""

    @property
    def data_position(self) -> int:
        """Position in the data order at which the next step begins."""
        return self.consumed_samples + self.skipped_samples


@contextmanager
def save_folder(config: PretrainConfig) -> Iterator[CheckpointManager | None]:
    """The manager of --save, kept from other runs for as long as the context lasts; None without --save.

    Raises:
        ValueError: the folder cannot be written, holds checkpoints that the run does not continue, or is another
            run's.
    """
    chosen = config.checkpoint
    if chosen.save is None:
        yield None
        return
    manager = CheckpointManager(Path(chosen.save), chosen.keep_last, chosen.save_retain_interval)
    manager.prepare(resume=chosen.resume)
    with ExitStack() as held:

        def hold() -> None:
            """Lock the folder, on rank 0."""
            manager.check_held = held.enter_context(run_lock(manager.root)).check

        on_rank_zero(hold)
        yield manager


class RunCheckpoints:
    """Saves and restores one run. Every method is called by every rank."""

    def __init__(
        self,
        resolved: Resolved,
        world: World,
        manager: CheckpointManager | None,
        engine: Engine,
        tokenizer: Tokenizer,
        documents: dict[str, bool | None] | None = None,
    ) -> None:
        """Touches nothing; call `restore` first, then `save` as often as needed. `manager` is None without --save;
        `documents` goes into the record."""
        self._resolved = resolved
        self._config = resolved.config
        self._world = world
        self._engine = engine
        self._tokenizer = tokenizer
        self._documents = documents or {}
        self._layout = engine.layout
        self._manager = manager
        self._under_way: tuple[BackgroundSave, int, RunRecord] | None = None
        """A save in the background, its iteration and its record."""
        self.saved_iteration: int | None = None
        """Iteration of the newest checkpoint that this run has published or loaded from --save."""
        self.begun_iteration: int | None = None
        """Iteration of the newest checkpoint that is published or being written."""

    @property
    def enabled(self) -> bool:
        """Whether --save was given."""
        return self._manager is not None

    def newest(self) -> str | None:
        """Path of the newest checkpoint of this run, for the summary."""
        if self._manager is None or self.saved_iteration is None:
            return None
        return str(self._manager.root / folder_name(self.saved_iteration))

    def restore(self) -> TrainingProgress:
        """Load what --resume, --load, --ckpt-step and --finetune ask for; returns where training continues.

        Raises ValueError, with the reason, for a checkpoint that is incomplete, of another program or incompatible.
        """
        chosen = self._config.checkpoint
        source = on_rank_zero(lambda: find_source(chosen))
        if source is None:
            if chosen.resume:
                logger.info("--resume: %s contains no checkpoint; the run starts from scratch", chosen.save)
            return TrainingProgress()
        if source.passed_over:
            logger.info("--ckpt-step %d skips the newer %s", chosen.ckpt_step, ", ".join(source.passed_over))
        progress = self._load(source.folder, finetune=chosen.finetune and not source.resumed)
        if source.resumed:
            self.saved_iteration = self.begun_iteration = progress.iteration
        return progress

    def _load(self, folder: Path, *, finetune: bool) -> TrainingProgress:
        record = on_rank_zero(lambda: read_record(folder))
        saved = read_saved_config(folder)
        weights_only = finetune or record.weights_only
        notices = check_resumable(saved, self._config, str(folder), finetune=weights_only)
        if record.weights_only and not finetune:
            notices += changed_model(saved, self._config)
        if self._config.checkpoint.override_opt_param_scheduler is False and not weights_only:
            check_same_schedule(saved, self._config, str(folder))
        if record.tokenizer_hash not in ("", self._tokenizer.identity):
            raise ValueError(
                f"cannot continue from {folder}: its tokenizer (vocabulary size {record.vocab_size}, identity "
                f"{record.tokenizer_hash[:12]}) is not the one given (vocabulary size {self._tokenizer.vocab_size}, "
                f"identity {self._tokenizer.identity[:12]}); set --tokenizer-model to the copy in the checkpoint"
            )
        if record.vocab_size != self._tokenizer.vocab_size:
            raise ValueError(
                f"cannot continue from {folder}: its model has {record.vocab_size} token embeddings, but the tokenizer "
                f"has {self._tokenizer.vocab_size} ids; give the tokenizer that the model was trained with"
            )
        notices += self._engine.load(folder, weights_only=weights_only)
        if finetune:
            logger.info("loaded weights and fast weights from %s (iteration %d)", folder, record.iteration)
            progress = TrainingProgress()
        else:
            progress = self._go_on(folder, record, notices)
        for notice in notices:
            logger.info("%s", notice)
        return progress

    def _go_on(self, folder: Path, record: RunRecord, notices: list[str]) -> TrainingProgress:
        """Restore the rest of the state; bit for bit where the layout is the saved one."""
        if record.weights_only:
            self._engine.begin_at(record.iteration)
            notices.append(
                f"{folder.name} was imported and has no optimizer state: the optimizer and the random states begin "
                f"anew, the schedule goes on at iteration {record.iteration}"
            )
        elif record.layout == self._layout:
            self._engine.set_random_state(load_rng_state(folder, self._world.rank))
        else:
            notices.append(
                f"the layout changed from {record.layout} to {self._layout}: weights are restored exactly, random "
                "states are initialized anew"
            )
        loop = record.loop
        logger.info("resumed from %s: iteration %d, %d samples", folder, record.iteration, record.consumed_samples)
        return TrainingProgress(
            iteration=record.iteration,
            consumed_samples=record.consumed_samples,
            consumed_tokens=record.consumed_tokens,
            best_loss=loop["best_loss"],
            window=[(loss, lm_loss) for loss, lm_loss in loop["window"]],
            guard=loop["guard"],
            dataset_windows=loop["dataset_windows"],
            evaluation_cut_off=loop.get("evaluation_cut_off", False),  # not in checkpoints before 2026-11-28
            **{name: loop[name] for name in _LATER if name in loop},
        )

    def go_back(self, before: int) -> TrainingProgress | None:
        """Load the newest checkpoint of --save from before an iteration, and continue from it; None without one."""
        assert self._manager is not None, "refused at start-up"
        self.finish(wait=True)
        manager, newest = self._manager, self.saved_iteration
        folder = None if newest is None else on_rank_zero(lambda: manager.go_back(before, newest))
        if folder is None:
            return None
        progress = self._load(folder, finetune=False)
        self.saved_iteration = self.begun_iteration = progress.iteration
        return progress

    def leave_data_out(self, progress: TrainingProgress) -> None:
        """Record in the newest checkpoint which data a run that continues from it leaves out."""
        folder = self.newest()
        assert folder is not None
        on_rank_zero(lambda: amend_record(Path(folder), {name: getattr(progress, name) for name in _RECOVERY}))

    def save(self, progress: TrainingProgress) -> None:
        """Write and publish a checkpoint of the current state; does nothing without --save.

        With --async-save forked processes write it, and a later `save` or `finish` publishes it. Raises CheckpointError
        when it cannot be written; what was published before is untouched then.
        """
        if self._manager is None:
            return
        self.finish(wait=True)
        manager, iteration, record = self._manager, progress.iteration, self._record(progress)
        size = self._size_of(iteration)
        with explained(self._world.rank, folder_name(iteration), manager.root, size), self._removed_on_error():
            folder = manager.begin(iteration, size)
            self._write_the_rest(folder)
            if self._config.checkpoint.async_save:
                self._under_way = self._engine.save_in_background(folder), iteration, record
            else:
                self._engine.save(folder)
                self._publish(iteration, record)
        self.begun_iteration = iteration

    def finish(self, *, wait: bool) -> None:
        """Publish the checkpoint that is being written if it is complete; with `wait`, wait until it is.

        Raises CheckpointError when it could not be written.
        """
        if self._manager is None or self._under_way is None:
            return
        writing, iteration, record = self._under_way
        name = folder_name(iteration)
        size = self._size_of(iteration)
        with explained(self._world.rank, name, self._manager.root, size), self._removed_on_error():
            if writing.finish(wait=wait):
                self._under_way = None
                self._publish(iteration, record)

    def _size_of(self, iteration: int) -> int:
        """About the bytes of a checkpoint."""
        return checkpoint_bytes(self._config, self._tokenizer.vocab_size, self._world.size, iteration).total

    @contextmanager
    def _removed_on_error(self) -> Iterator[None]:
        """Leave no incomplete checkpoint and no writer behind if saving fails."""
        assert self._manager is not None
        try:
            yield
        except BaseException:
            if self._under_way is not None:
                self._under_way[0].abort()
                self._under_way = None
            self._manager.abandon()
            raise

    def _publish(self, iteration: int, record: RunRecord) -> None:
        assert self._manager is not None
        self._manager.end(iteration, record)
        self.saved_iteration = iteration

    def _write_the_rest(self, folder: Path) -> None:
        save_rng_state(folder, self._world.rank, self._engine.random_state())
        if self._world.is_main:
            (folder / CONFIG_NAME).write_text(self._resolved.to_yaml(), encoding="utf-8")
            self._copy_tokenizer(folder)

    def _record(self, progress: TrainingProgress) -> RunRecord:
        # Copies: training goes on while an asynchronous save waits for its record.
        guard = {layer: list(losses) for layer, losses in progress.guard.items()}
        loop: dict[str, Any] = {
            "best_loss": progress.best_loss,
            "window": list(progress.window),
            "guard": guard,
            "dataset_windows": progress.dataset_windows,
            "evaluation_cut_off": progress.evaluation_cut_off,
            **{name: getattr(progress, name) for name in _RECOVERY},
            "validation": progress.validation,
            "recent_losses": list(progress.recent_losses),
        }
        return RunRecord(
            iteration=progress.iteration,
            consumed_samples=progress.consumed_samples,
            consumed_tokens=progress.consumed_tokens,
            layout=self._layout,
            vocab_size=self._tokenizer.vocab_size,
            padded_vocab_size=embedding_rows(self._config, self._tokenizer.vocab_size),
            tokenizer_hash=self._tokenizer.identity,
            tokenizer_file=self._tokenizer_name(),
            loop=loop,
            documents=self._documents,
            versions={name: importlib.metadata.version(name) for name in ("torch", "megatron-core")},
        )

    def _tokenizer_name(self) -> str | None:
        path = self._tokenizer.path
        if path is None:
            return None
        in_folder = path.is_dir() or self._tokenizer.kind == "HuggingFaceTokenizer"
        return "tokenizer" if in_folder else "tokenizer" + path.suffix

    def _copy_tokenizer(self, folder: Path) -> None:
        """Keep the tokenizer with the weights, so that an export needs nothing else."""
        path, name = self._tokenizer.path, self._tokenizer_name()
        if path is None or name is None:
            return
        if path.is_dir():
            shutil.copytree(path, folder / name)
        elif self._tokenizer.kind == "HuggingFaceTokenizer":  # the names of its special tokens stand beside it
            (folder / name).mkdir()
            shutil.copyfile(path, folder / name / "tokenizer.json")
            for beside in ("tokenizer_config.json", "special_tokens_map.json"):
                if path.with_name(beside).is_file():
                    shutil.copyfile(path.with_name(beside), folder / name / beside)
        else:
            shutil.copyfile(path, folder / name)
