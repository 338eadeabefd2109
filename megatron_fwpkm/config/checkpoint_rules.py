"""Rules between the options about checkpoints: what is saved, kept, continued and taken over."""

from __future__ import annotations

from collections.abc import Iterator

from .pretrain import PretrainConfig
from .training import CheckpointConfig


def checkpoint_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for every violated rule."""
    checkpoint = config.checkpoint
    if config.training.dry_run_all and not config.training.dry_run:
        yield "--dry-run-all has no effect without --dry-run: add --dry-run"
    if checkpoint.resume and checkpoint.save is None:
        yield "--resume requires --save, the folder of the run to resume"
    if checkpoint.finetune and checkpoint.load is None:
        yield "--finetune requires --load, the folder of the weights to start from"
    if checkpoint.save_interval is not None and checkpoint.save is None and not config.training.dry_run:
        yield f"--save-interval {checkpoint.save_interval} has no effect without --save: add --save"
    yield from _retention(checkpoint)
    yield from _start(checkpoint)
    yield from _schedule(checkpoint)


def _retention(checkpoint: CheckpointConfig) -> Iterator[str]:
    retain, interval = checkpoint.save_retain_interval, checkpoint.save_interval
    if retain is None:
        return
    if interval is None:
        yield f"--save-retain-interval {retain} requires --save-interval"
    elif retain % interval:
        below = retain // interval * interval
        near = f"{below} or {below + interval}" if below else str(interval)
        yield f"--save-retain-interval {retain} is not divisible by --save-interval {interval}: use {near}"
    if checkpoint.keep_last == 0:
        yield (
            f"--save-retain-interval {retain} has no effect with --keep-last 0, which keeps all checkpoints: "
            "remove it, or give --keep-last 1"
        )


def _start(checkpoint: CheckpointConfig) -> Iterator[str]:
    """Options about the checkpoint that a run starts from need one."""
    if checkpoint.resume or checkpoint.load is not None:
        return
    given = {
        f"--ckpt-step {checkpoint.ckpt_step}": checkpoint.ckpt_step is not None,
        "--exit-on-missing-checkpoint": checkpoint.exit_on_missing_checkpoint,
        "--use-checkpoint-args": checkpoint.use_checkpoint_args,
        "--use-checkpoint-opt-param-scheduler": checkpoint.use_checkpoint_opt_param_scheduler,
    }
    for flag in (flag for flag, is_given in given.items() if is_given):
        yield f"{flag} requires a checkpoint to start from: add --resume with --save, or --load"


def _schedule(checkpoint: CheckpointConfig) -> Iterator[str]:
    if not checkpoint.use_checkpoint_opt_param_scheduler:
        return
    if checkpoint.override_opt_param_scheduler:
        yield (
            "--override-opt-param-scheduler and --use-checkpoint-opt-param-scheduler are mutually exclusive: the first "
            "uses the given schedule, the second the checkpoint's; remove one of them"
        )
    if checkpoint.finetune and not checkpoint.resume:
        yield (
            "--use-checkpoint-opt-param-scheduler has no effect with --finetune, which restarts the schedule: "
            "remove one of them"
        )
