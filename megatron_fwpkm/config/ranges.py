"""Ranges of single numbers; rules between options are in `validation`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

from .loading import PREFIXES
from .pretrain import PretrainConfig

# Least value of a number by (group, field). Fields that may be None are checked when they are set.
_AT_LEAST: dict[tuple[str, str], float] = {
    **{
        ("model", name): 1
        for name in (
            "num_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "kv_channels",
            "seq_length",
            "max_position_embeddings",
            "make_vocab_size_divisible_by",
            "rope_scaling_factor",
        )  # fmt: skip
    },
    **{
        ("fwpkm", name): 1
        for name in ("num_heads", "num_subkeys", "value_dim", "topk", "chunk_size", "dp_sync_interval")
    },
    **{("fwpkm", name): 0 for name in ("lookahead", "inner_lr", "addressing_weight", "check_consistency_interval")},
    ("fwpkm", "key_dim"): 2,
    **{
        ("parallel", name): 1
        for name in (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "num_virtual_stages_per_pipeline_rank",
            "context_parallel_size",
        )  # fmt: skip
    },
    **{
        ("optimizer", name): 0
        for name in (
            "min_lr",
            "lr_warmup_iters",
            "decoupled_min_lr",
            "weight_decay",
            "start_weight_decay",
            "end_weight_decay",
            "clip_grad",
        )  # fmt: skip
    },
    **{("optimizer", name): 1 for name in ("lr_decay_iters", "lr_wsd_decay_iters")},
    ("data", "vocab_size"): 1,
    ("data", "tiktoken_num_special_tokens"): 1,
    ("data", "num_workers"): 0,
    **{("needle", name): 1 for name in ("facts", "key_words", "value_words")},
    ("needle", "answer_weight"): 0,
    **{
        ("training", name): 1
        for name in (
            "micro_batch_size",
            "global_batch_size",
            "train_iters",
            "exit_interval",
            "eval_interval",
            "num_threads",
            "recompute_num_layers",
            "check_weight_hash_across_dp_replicas_interval",
        )  # fmt: skip
    },
    **{("training", name): 0 for name in ("eval_iters", "seed", "cpu_offloading_num_layers", "manual_gc_interval")},
    ("checkpoint", "save_interval"): 1,
    ("checkpoint", "save_retain_interval"): 1,
    ("checkpoint", "ckpt_step"): 0,
    ("checkpoint", "keep_last"): 0,
    ("logging", "log_interval"): 1,
}
_ABOVE: dict[tuple[str, str], float] = {
    ("model", "rotary_base"): 1,
    ("model", "rotary_percent"): 0,
    ("model", "norm_epsilon"): 0,
    ("model", "init_method_std"): 0,
    ("model", "embedding_init_method_std"): 0,
    ("parallel", "distributed_timeout_minutes"): 0,
    ("parallel", "rendezvous_timeout_minutes"): 0,
    ("optimizer", "lr"): 0,
    ("optimizer", "decoupled_lr"): 0,
    ("optimizer", "adam_eps"): 0,
    ("training", "exit_duration_in_mins"): 0,
    ("training", "divergence_factor"): 1,
}
_AT_MOST: dict[tuple[str, str], float] = {
    ("model", "rotary_percent"): 1,
    ("model", "rope_scaling_factor"): 1_000_000,
    ("needle", "fraction"): 1,
    ("training", "seed"): 2**32 - 1,
}
# Beyond these, what is computed is not finite for long, or nothing is ever written; hf/config_checks.py says the same.
_UP_TO: dict[tuple[str, str], float] = {
    ("model", "num_layers"): 10_000,
    ("model", "num_attention_heads"): 2**16,
    ("model", "num_query_groups"): 2**16,
    **{("model", name): 2**20 for name in ("hidden_size", "kv_channels", "make_vocab_size_divisible_by")},
    **{("model", name): 2**24 for name in ("ffn_hidden_size", "seq_length")},
    **{("fwpkm", name): 2**20 for name in ("num_heads", "num_subkeys", "key_dim", "value_dim", "topk")},
    ("parallel", "tensor_model_parallel_size"): 2**16,
    ("parallel", "context_parallel_size"): 2**16,
    ("parallel", "pipeline_model_parallel_size"): 1024,
    ("parallel", "num_virtual_stages_per_pipeline_rank"): 1024,
    ("parallel", "distributed_timeout_minutes"): 10**7,
    ("parallel", "rendezvous_timeout_minutes"): 10**7,
    ("data", "vocab_size"): 2**31 - 1,
    ("data", "tiktoken_num_special_tokens"): 2**20,
    ("data", "num_workers"): 1024,
    **{("needle", name): 2**16 for name in ("facts", "key_words", "value_words")},
    **{("training", name): 2**31 - 1 for name in ("micro_batch_size", "global_batch_size")},
    ("training", "num_threads"): 2**16,
    ("model", "rotary_base"): 10**15,
    ("model", "norm_epsilon"): 1,
    ("model", "init_method_std"): 10,
    ("model", "embedding_init_method_std"): 10,
    ("fwpkm", "chunk_size"): 2**20,
    ("fwpkm", "inner_lr"): 100,
    ("fwpkm", "addressing_weight"): 1000,
}
_COUNT_UP_TO = 10**12
"""Of any other whole number: beyond it, what is counted never ends."""
# From 0 to below 1.
_SHARES = (
    ("model", "attention_dropout"),
    ("model", "hidden_dropout"),
    ("optimizer", "adam_beta1"),
    ("optimizer", "adam_beta2"),
)


def values_out_of_range(config: PretrainConfig) -> Iterator[str]:
    """A sentence for every number of a configuration that is out of its range, looked at alone."""
    for group in fields(config):
        part = getattr(config, group.name)
        for item in fields(part):
            place, value = (group.name, item.name), getattr(part, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            flag = "--" + PREFIXES.get(group.name, "") + item.name.replace("_", "-")
            wrong = _range_left(place, value)
            if wrong is not None:
                yield f"{flag} {value} must {wrong}"


def _range_left(place: tuple[str, str], value: float) -> str | None:
    """`be at least 1`, where a number is not."""
    if isinstance(value, float) and not math.isfinite(value):
        return "be a finite number"
    if place in _AT_LEAST and value < _AT_LEAST[place]:
        return f"be at least {_AT_LEAST[place]}"
    if place in _ABOVE and value <= _ABOVE[place]:
        return f"be above {_ABOVE[place]}"
    if place in _AT_MOST and not 0 <= value <= _AT_MOST[place]:
        return f"lie between 0 and {_AT_MOST[place]}"
    most = _UP_TO.get(place, _COUNT_UP_TO if isinstance(value, int) else math.inf)
    if value > most:
        return f"be at most {most}"
    if place in _SHARES and not 0 <= value < 1:
        return "be at least 0 and below 1"
    return None
