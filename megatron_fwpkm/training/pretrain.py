"""A whole pretraining run, from a resolved configuration to the closing summary."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable, Sized
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from megatron.core import parallel_state

from ..checkpoint.lock import run_lock
from ..checkpoint.manager import CheckpointManager
from ..config import PretrainConfig
from ..config.batch_schedule import samples_ahead
from ..config.chunk_rules import notes_on_writing
from ..config.derived import padded_vocab_size
from ..config.loading import Resolved
from ..config.validation import validate
from ..data.tokenizers import build_tokenizer
from ..data.training.datasets import build_datasets
from ..data.training.document_marks import bos_doubt, document_marks
from ..data.training.sampler import build_loader
from ..distributed.ranks import on_rank_zero
from ..distributed.same_start import describe_start
from ..distributed.startup import World, distributed_run, memory_bytes
from ..engines.megatron import Batch, MegatronEngine, num_microbatches
from .checkpointing import Progress, RunCheckpoints, prepare_save_folder
from .loop import TrainingLoop
from .memory_estimate import check_step_fits, check_tables_fit
from .metrics import JsonLines, MetricsLog, Sink, TensorBoard

logger = logging.getLogger("megatron_fwpkm")


def run(resolved: Resolved) -> int:
    """Train as `resolved` says; returns the exit status 0.

    Raises ValueError or OSError for what a user can cause (configuration, data, checkpoints, a run that diverges), on
    the rank where it is noticed, with that rank in the message when there are several.
    """
    config = resolved.config
    with distributed_run(config.parallel, config.training, describe_start(resolved)) as world:
        validate(config, world.size)
        for notice in resolved.notices:
            logger.info("%s", notice)
        _train(resolved, world)
    return 0


def _train(resolved: Resolved, world: World) -> None:
    config = resolved.config
    replicas = parallel_state.get_data_parallel_world_size()
    global_batch = num_microbatches(config, replicas) * config.training.micro_batch_size * replicas
    manager = prepare_save_folder(config)
    with ExitStack() as held:
        if manager is not None:
            on_rank_zero(partial(_hold, held, manager))
        _train_alone(resolved, world, manager, global_batch)


def _hold(held: ExitStack, manager: CheckpointManager) -> None:
    """Keep other runs out of a --save folder until `held` closes."""
    manager.check_held = held.enter_context(run_lock(manager.root)).check


def _train_alone(resolved: Resolved, world: World, manager: CheckpointManager | None, global_batch: int) -> None:
    """Train with the --save folder to itself."""
    config = resolved.config
    replicas = parallel_state.get_data_parallel_world_size()
    check_tables_fit(config, parallel_state.get_pipeline_model_parallel_rank(), memory_bytes(world.device))
    tokenizer = build_tokenizer(config.data)
    check_step_fits(config, tokenizer.vocab_size, world.size)
    train, validation, test = build_datasets(config, tokenizer, global_batch_size=global_batch)
    rows = padded_vocab_size(
        tokenizer.vocab_size, config.model.make_vocab_size_divisible_by, config.parallel.tensor_model_parallel_size
    )
    engine = MegatronEngine(config, rows, world.device)
    documents = document_marks(config.data)
    if tokenizer.bos is not None and (doubt := bos_doubt(config.data)):
        logger.warning("%s", doubt)
    checkpoints = RunCheckpoints(resolved, world, manager, engine, tokenizer, rows, documents)
    progress = checkpoints.restore()
    assert isinstance(train, Sized)  # a map-style dataset
    if not config.training.skip_train:
        check_data_position(config, progress, len(train), global_batch)
    loaders = [
        None
        if dataset is None
        else build_loader(
            dataset,
            micro_batch_size=config.training.micro_batch_size,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=replicas,
            consumed_samples=consumed,
            num_workers=config.data.num_workers,
        )
        for dataset, consumed in (
            (None if config.training.skip_train else train, progress.consumed_samples),
            (validation, 0),
            (test, 0),
        )
    ]
    train_batches: Iterable[Batch] = loaders[0] or ()
    log_dir = on_rank_zero(lambda: _make_log_dir(resolved))
    with open_metrics(config, world, log_dir, progress.iteration) as metrics:
        _announce(config, world, global_batch, sum(p.numel() for chunk in engine.chunks for p in chunk.parameters()))
        loop = TrainingLoop(config, world, engine, checkpoints, metrics, progress, global_batch)
        places = {"metrics": str(log_dir / "metrics.jsonl"), "tensorboard": config.logging.tensorboard_dir}
        loop.run(train_batches, loaders[1], loaders[2], places)


def check_data_position(config: PretrainConfig, progress: Progress, windows: int, global_batch: int) -> None:
    """Whether the data goes on where a resumed run left it; a new run only notes the dataset's size.

    Megatron deals all epochs at once, so another number of windows is another order: that is said, not refused.
    Raises ValueError when the windows that are left do not suffice.
    """
    training = config.training
    ahead = training.train_iters - progress.iteration
    left = samples_ahead(training, global_batch, progress.consumed_samples, ahead)
    if progress.consumed_samples + left > windows:
        raise ValueError(
            f"{progress.consumed_samples} samples are consumed and {left} more are needed to reach --train-iters "
            f"{config.training.train_iters} at --global-batch-size {global_batch}, but the dataset was sized for "
            f"{windows}: go on with the batch size the run began with, or start anew with --load and --finetune"
        )
    if progress.dataset_windows not in (0, windows):
        logger.warning(
            "the training data was dealt as %d windows and is now dealt as %d (--train-iters, --global-batch-size or "
            "the data changed), in another order: from here on some windows come again and some never",
            progress.dataset_windows,
            windows,
        )
    progress.dataset_windows = windows


def _make_log_dir(resolved: Resolved) -> Path:
    """The folder of logs, with the resolved configuration in it.

    Raises ValueError when it cannot be written.
    """
    config = resolved.config
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    save = None if config.training.skip_train else config.checkpoint.save  # its records and options are the training's
    folder = Path(config.logging.log_dir or save or f"runs/{now}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(resolved.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--log-dir {folder} cannot be written: {error.strerror}; choose another folder") from error
    return folder


def open_metrics(config: PretrainConfig, world: World, log_dir: Path, iteration: int) -> MetricsLog:
    """This rank's sinks: all on rank 0, none elsewhere. Records of an earlier run after `iteration` are dropped."""
    if not world.is_main:
        return MetricsLog([])
    sinks: list[Sink] = [JsonLines(log_dir / "metrics.jsonl", keep_until=iteration)]
    if config.logging.tensorboard_dir is not None:
        sinks.append(TensorBoard(config.logging.tensorboard_dir, purge_step=iteration + 1))
    return MetricsLog(sinks)


def _announce(config: PretrainConfig, world: World, global_batch: int, parameters: int) -> None:
    """One line on what is about to be trained where, and what to know of its memories' writes."""
    parallel, layers = config.parallel, " ".join(map(str, config.fwpkm.layer_numbers))
    logger.info(
        "training on %s: %d process(es), TP %d, PP %d | %s parameters per rank, %s | "
        "%d sequences of %d tokens per step",
        world.device,
        world.size,
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        f"{parameters:,}",
        f"memories at layers {layers}" if layers else "a plain transformer without memory (--fwpkm-layer-numbers)",
        global_batch,
        config.model.seq_length,
    )
    for note in notes_on_writing(config):
        logger.info("%s", note)
