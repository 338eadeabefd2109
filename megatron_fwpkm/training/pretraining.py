"""A whole pretraining run, from a resolved configuration to the closing summary."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable, Sized
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..checkpoint.manager import CheckpointManager
from ..config import PretrainConfig
from ..config.batch_schedule import samples_ahead
from ..config.chunk_rules import notes_on_writing
from ..config.derived import data_parallel_size, global_batch_size
from ..config.layer_kind import layers_in_words
from ..config.loading import Resolved
from ..config.memories import memory_kinds, memory_numbers
from ..config.validation import validate
from ..data.tokenizers import build_tokenizer
from ..data.training.datasets import Windows, build_datasets
from ..data.training.document_marks import bos_doubt, document_marks
from ..data.training.sampler import build_loader
from ..distributed import flight_recorder
from ..distributed.ranks import on_rank_zero
from ..distributed.same_start import describe_start
from ..distributed.startup import World, distributed_run, memory_bytes
from ..engines.base import Batch, Engine, EngineBuilder
from ..engines.build import build_engine, check_installed
from ..libraries.choices import check_choices, choose_libraries, describe
from ..libraries.probes import installed
from .checkpointing import RunCheckpoints, TrainingProgress, save_folder
from .loop import TrainingLoop
from .memory_estimate import check_step_fits, check_tables_fit
from .metrics import EveryInterval, JsonLines, MetricsLog, Sink, TensorBoard
from .profiler import RunProfiler, check_profiling
from .recovery import Recovery
from .throughput import Throughput
from .wandb_run import WandbRun, check_wandb
from .watchdog import Watchdog

logger = logging.getLogger("megatron_fwpkm")


def run(resolved: Resolved, build: EngineBuilder = build_engine) -> int:
    """Train as `resolved` says, with the engine that `build` makes; returns the exit status 0.

    Raises ValueError or OSError for what a user can cause (configuration, data, checkpoints, a run that diverges), on
    the rank where it is noticed, with that rank in the message when there are several.
    """
    config = resolved.config
    described, watched = describe_start(resolved), config.faults.watchdog_timeout is not None
    with distributed_run(config.parallel, config.training, described, record_collectives=watched) as world:
        validate(config, world.size)
        check_choices(choose_libraries(config, installed()))
        check_installed(config, world)
        check_wandb(config.logging)
        check_profiling(config, world.device)
        for notice in resolved.notices:
            logger.info("%s", notice)
        with save_folder(config) as manager:
            _train(resolved, world, manager, build)
    return 0


def _train(resolved: Resolved, world: World, manager: CheckpointManager | None, build: EngineBuilder) -> None:
    """Train with the --save folder to itself."""
    config = resolved.config
    global_batch = global_batch_size(config, data_parallel_size(config, world.size))
    check_tables_fit(config, memory_bytes(world.device), data_parallel_size(config, world.size))
    tokenizer = build_tokenizer(config.data)
    check_step_fits(config, tokenizer.vocab_size, world.size)
    datasets = build_datasets(config, tokenizer, global_batch_size=global_batch)
    with build(config, world, tokenizer.vocab_size) as engine:
        documents = document_marks(config.data)
        if tokenizer.bos is not None and (doubt := bos_doubt(config.data)):
            logger.warning("%s", doubt)
        checkpoints = RunCheckpoints(resolved, world, manager, engine, tokenizer, documents)
        progress = checkpoints.restore()
        if not config.training.skip_train:
            assert isinstance(datasets[0], Sized)  # a map-style dataset
            check_data_position(config, progress, len(datasets[0]), global_batch)
        validation, test = (_loader(config, engine, dataset) for dataset in datasets[1:])

        def training_data(progress: TrainingProgress) -> Iterable[Batch]:
            """The training data from where a progress stands."""
            dataset = None if config.training.skip_train else datasets[0]
            return _loader(config, engine, dataset, progress.data_position, progress.skipped_samples) or ()

        log_dir = on_rank_zero(lambda: _make_log_dir(resolved))
        with (
            open_metrics(config, world, log_dir, progress.iteration) as metrics,
            RunProfiler(config, world, log_dir, progress.iteration) as profiler,
        ):
            _announce(config, world, global_batch, engine.num_parameters)
            if world.restarts:
                logger.info(
                    "restart %d by torchrun: the run continues at iteration %d", world.restarts, progress.iteration
                )
                metrics.write("restart", {"iteration": progress.iteration, "restarts": world.restarts})
            recovery = Recovery(config, checkpoints, training_data)
            hooks = profiler.step, Throughput(config, tokenizer.vocab_size, world).figures
            loop = TrainingLoop(config, world, engine, checkpoints, metrics, progress, global_batch, recovery, *hooks)
            places = {"metrics": str(log_dir / "metrics.jsonl"), "tensorboard": config.logging.tensorboard_dir}
            with _watchdog(config, world, log_dir, loop):
                loop.run(validation, test, places)


def _watchdog(
    config: PretrainConfig, world: World, log_dir: Path, loop: TrainingLoop
) -> AbstractContextManager[object]:
    """What ends the run when it makes no progress."""
    if world.device.type == "cuda" and world.size > 1:
        flight_recorder.dump_into(log_dir)
        logger.info(
            "when a collective times out, every rank writes its last ones into %s: %s compares them",
            log_dir,
            flight_recorder.command(log_dir),
        )
    seconds = config.faults.watchdog_timeout
    return nullcontext() if seconds is None else Watchdog(world, seconds, log_dir, lambda: loop.progress.iteration)


def _loader(
    config: PretrainConfig, engine: Engine, dataset: Windows | None, position: int = 0, left_out: int = 0
) -> Iterable[Batch] | None:
    """This rank's batches of a dataset from `position` on, where rewinds have left out so many samples before."""
    if dataset is None:
        return None
    return build_loader(
        dataset,
        micro_batch_size=config.training.micro_batch_size,
        data_parallel_rank=engine.data_parallel_rank,
        data_parallel_size=engine.layout.data_parallel,
        consumed_samples=position,
        left_out_samples=left_out,
        num_workers=config.data.num_workers,
    )


def check_data_position(config: PretrainConfig, progress: TrainingProgress, windows: int, global_batch: int) -> None:
    """Check that the data continues where a resumed run left it; a new run only notes the dataset's size.

    Megatron shuffles all epochs at once, so a different number of windows means a different order: a warning.
    Raises ValueError if too few windows are left.
    """
    training = config.training
    ahead = training.train_iters - progress.iteration
    left = samples_ahead(training, global_batch, progress.consumed_samples, ahead)
    if progress.consumed_samples + left > windows:
        raise ValueError(
            f"the run has consumed {progress.consumed_samples} samples and needs {left} more to reach --train-iters "
            f"{config.training.train_iters} at --global-batch-size {global_batch}, but the dataset has only {windows}: "
            "keep the batch size that the run started with, or start a new run with --load and --finetune"
        )
    if progress.dataset_windows not in (0, windows):
        logger.warning(
            "the training data had %d windows and now has %d, in a different order (--train-iters, --global-batch-size "
            "or the data changed): some windows will be seen again and some never",
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
    chosen, others = config.logging, list[Sink]()
    if chosen.tensorboard_dir is not None:
        queue_size = chosen.tensorboard_queue_size
        others.append(TensorBoard(chosen.tensorboard_dir, purge_step=iteration + 1, queue_size=queue_size))
    if chosen.wandb_project is not None:
        others.append(WandbRun(config, log_dir, iteration))
    interval = chosen.tensorboard_log_interval
    return MetricsLog([*sinks, *(EveryInterval(sink, interval) if interval else sink for sink in others)])


def _announce(config: PretrainConfig, world: World, global_batch: int, parameters: int) -> None:
    """Log what is trained, where and with which libraries, and notes on when its memories are written."""
    parallel = config.parallel
    logger.info(
        "training on %s: %d process%s, TP %d, PP %d | %s parameters per rank, %s | %d sequences of %d tokens per step",
        world.device,
        world.size,
        "es" * (world.size != 1),
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        f"{parameters:,}",
        _memories(config),
        global_batch,
        config.model.seq_length,
    )
    notes = (line for memory in memory_kinds(config) for line in notes_on_writing(config, memory))
    for line in (*describe(choose_libraries(config, installed())), *notes):
        logger.info("%s", line)


def _memories(config: PretrainConfig) -> str:
    """`memories at layers 2, 3; static memories at layer 4`."""
    found = {"memories": memory_numbers(config), "static memories": config.pkm.layer_numbers}
    said = [f"{what} at {layers_in_words(numbers)}" for what, numbers in found.items() if numbers]
    return "; ".join(said) or "no memory: a plain transformer (see --fwpkm-layer-numbers)"
