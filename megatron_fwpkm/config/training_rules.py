"""Rules between the options of the loop: what one of them needs or excludes."""

from __future__ import annotations

from collections.abc import Iterator

from .pretrain import PretrainConfig


def training_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for every violated rule."""
    training = config.training
    if config.parallel.grad_reduce_in_bf16 and not training.bf16:
        yield "--grad-reduce-in-bf16 requires --bf16: add it, or remove --grad-reduce-in-bf16"
    yield from _skip_train(config)
    yield from _logging(config)
    if not training.manual_gc:
        if training.manual_gc_interval:
            yield f"--manual-gc-interval {training.manual_gc_interval} has no effect without --manual-gc: add it"
        if not training.manual_gc_eval:
            yield "--no-manual-gc-eval has no effect without --manual-gc: add it"


def _skip_train(config: PretrainConfig) -> Iterator[str]:
    """--skip-train needs something to evaluate, and touches no folder of checkpoints."""
    training, checkpoint = config.training, config.checkpoint
    if not training.skip_train:
        return
    if not training.eval_iters:
        yield "--skip-train only evaluates, but --eval-iters 0 disables evaluation: use --eval-iters of at least 1"
    if checkpoint.save is not None and not checkpoint.resume:
        yield (
            f"--skip-train saves nothing in --save {checkpoint.save}: give --resume to evaluate its latest checkpoint, "
            "or remove --save"
        )


def _logging(config: PretrainConfig) -> Iterator[str]:
    """TensorBoard and Weights & Biases get records of the log interval, and only where they are asked for."""
    logging = config.logging
    interval = logging.tensorboard_log_interval
    if interval is not None:
        if logging.tensorboard_dir is None and logging.wandb_project is None:
            yield (
                f"--tensorboard-log-interval {interval} has no effect without --tensorboard-dir or --wandb-project: "
                "add one of them"
            )
        if interval % logging.log_interval:
            yield (
                f"--tensorboard-log-interval {interval} must be a multiple of --log-interval {logging.log_interval}, "
                "at which records are made"
            )
    if logging.peak_tflops is not None and not logging.log_throughput:
        yield f"--peak-tflops {logging.peak_tflops:g} has no effect without --log-throughput: add it"
    if logging.wandb_project is None:
        for name in ("exp_name", "entity", "save_dir"):
            if (value := getattr(logging, f"wandb_{name}")) is not None:
                flag = name.replace("_", "-")
                yield f"--wandb-{flag} {value} has no effect without --wandb-project: add it"
