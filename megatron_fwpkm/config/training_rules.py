"""Rules between the options of the loop: what one of them needs or excludes."""

from __future__ import annotations

from collections.abc import Iterator

from .pretrain import PretrainConfig


def training_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for every violated rule."""
    training = config.training
    if config.parallel.grad_reduce_in_bf16 and not training.bf16:
        yield "--grad-reduce-in-bf16 keeps gradients as bfloat16 weights are kept: give --bf16, too, or remove it"
    yield from _skip_train(config)
    if not training.manual_gc:
        if training.manual_gc_interval:
            yield f"--manual-gc-interval {training.manual_gc_interval} says when --manual-gc collects: give that, too"
        if not training.manual_gc_eval:
            yield "--no-manual-gc-eval says when --manual-gc does not collect: give that, too"


def _skip_train(config: PretrainConfig) -> Iterator[str]:
    """--skip-train needs something to evaluate, and touches no folder of checkpoints."""
    training, checkpoint = config.training, config.checkpoint
    if not training.skip_train:
        return
    if not training.eval_iters:
        yield "--skip-train only evaluates, and --eval-iters 0 turns that off: give --eval-iters of at least 1"
    if checkpoint.save is not None and not checkpoint.resume:
        yield (
            f"--skip-train saves nothing in --save {checkpoint.save}: give --resume to evaluate its latest checkpoint, "
            "or remove --save"
        )
