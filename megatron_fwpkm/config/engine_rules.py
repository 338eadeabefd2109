"""Which options --engine deepspeed cannot have, each with its reason: a table, which is checked at start-up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .deepspeed_options import file_problems, zero_stage
from .pretrain import PretrainConfig


@dataclass(frozen=True)
class Refusal:
    """A combination that does not run."""

    option: str
    """What is refused, as it would be typed; with fields of the configuration in braces."""
    applies: Callable[[PretrainConfig], bool]
    reason: str
    """Why, and what to do."""

    def sentence(self, config: PretrainConfig) -> str:
        """The whole message."""
        return f"--engine deepspeed does not run with {self.option.format(config=config)}: {self.reason}"


DEEPSPEED_REFUSALS = (
    Refusal(
        "--pipeline-model-parallel-size {config.parallel.pipeline_model_parallel_size}",
        lambda config: config.parallel.pipeline_model_parallel_size > 1,
        "ZeRO has no schedule for Megatron's pipeline stages; use --pipeline-model-parallel-size 1, or "
        "--engine megatron",
    ),
    Refusal(
        "--use-distributed-optimizer",
        lambda config: config.parallel.use_distributed_optimizer,
        "it is Megatron's own sharding of the optimizer states; give --zero-stage 1 in its place, which shards the "
        "same, or --engine megatron",
    ),
    Refusal(
        "--calculate-per-token-loss",
        lambda config: config.training.calculate_per_token_loss,
        "DeepSpeed averages the gradients of micro-batches and replicas before their tokens can be counted together; "
        "remove it, or give --engine megatron",
    ),
    Refusal(
        "--zero-stage 0 and --bf16",
        lambda config: zero_stage(config) == 0 and config.training.bf16,
        "DeepSpeed has no optimizer without sharding that keeps float32 gradients of bfloat16 weights; give "
        "--zero-stage 1, or remove --bf16",
    ),
    Refusal(
        "--zero-stage 3 and --check-weight-hash-across-dp-replicas-interval "
        "{config.training.check_weight_hash_across_dp_replicas_interval}",
        lambda config: zero_stage(config) == 3
        and config.training.check_weight_hash_across_dp_replicas_interval is not None,
        "every weight exists only once across the replicas, so that there is nothing to compare; remove the interval",
    ),
    Refusal(
        "--zero-stage 3 and --fp8-format {config.implementation.fp8_format}",
        lambda config: zero_stage(config) == 3 and config.implementation.fp8_format is not None,
        "ZeRO-3 shards the bytes of a weight, and an FP8 weight has scales beside its bytes; give "
        "--zero-stage 2, or remove --fp8-format",
    ),
    Refusal(
        "--adam-implementation {config.optimizer.adam_implementation}",
        lambda config: config.optimizer.adam_implementation not in ("auto", "torch"),
        "its steps are torch's, which ZeRO shards in every stage; use auto or torch",
    ),
    Refusal(
        "--zero-stage 3 and --log-straggler",
        lambda config: zero_stage(config) == 3 and config.faults.log_straggler,
        "every layer waits for the weights of all replicas, so that all of them take equally long; remove "
        "--log-straggler, or use a smaller --zero-stage",
    ),
    Refusal(
        "--on-nan skip",
        lambda config: config.faults.on_nan == "skip",
        "DeepSpeed gives the norm of the gradients only after its update, which cannot be undone; use --on-nan rewind, "
        "or give --engine megatron",
    ),
    Refusal(
        "--async-save",
        lambda config: config.checkpoint.async_save,
        "DeepSpeed writes its files while training waits; remove it, or give --engine megatron",
    ),
)
"""In the order in which they are said. A table of combinations may go through them."""


def engine_problems(config: PretrainConfig, data_parallel: int | None) -> Iterator[str]:
    """A sentence for every violated rule; `data_parallel` is None where the number of processes is not known."""
    if config.engine.engine == "deepspeed":
        yield from (refusal.sentence(config) for refusal in DEEPSPEED_REFUSALS if refusal.applies(config))
        yield from file_problems(config, data_parallel)
        return
    given = {
        f"--zero-stage {config.engine.zero_stage}": config.engine.zero_stage is not None,
        f"--deepspeed-config {config.engine.deepspeed_config}": config.engine.deepspeed_config is not None,
    }
    for flag in (flag for flag, is_given in given.items() if is_given):
        yield f"{flag} is an option of DeepSpeed: also set --engine deepspeed, or remove it"
