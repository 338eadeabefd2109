"""Whether a run may go on from a checkpoint: which flags differ, and what that means."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ..config import PretrainConfig
from ..config.arguments import format_item
from ..config.loading import PREFIXES

ARCHITECTURE = {
    "model": {
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "window_size",
        "rotary_base",
        "rotary_percent",
        "use_rope_scaling",
        "rope_scaling_factor",
        "norm_epsilon",
        "qk_layernorm",
        "add_bias_linear",
        "untie_embeddings_and_output_weights",
    },
    "fwpkm": {
        "layer_numbers",
        "num_heads",
        "num_subkeys",
        "key_dim",
        "value_dim",
        "score",
        "gate",
        "normalize_targets",
    },
}  # fmt: skip
"""The weights fit, and mean the same, with these values only."""

SAME_RUN = {
    # What is drawn before the first step would come too late.
    "model": {"seq_length", "init_method_std", "embedding_init_method_std"},
    "fwpkm": {"gate_bias_init"},
    "data": {"split", "eod_mask_loss", "reset_position_ids", "reset_attention_mask"},
    "needle": {"fraction", "facts", "template", "key_words", "value_words", "answer_weight"},
    "training": {"seed", "bf16", "rampup_batch_size"},
    "parallel": {"use_distributed_optimizer"},
}
"""A run goes on with these values only; another run may start from its weights with others."""

SCHEDULE = (
    "lr",
    "min_lr",
    "lr_decay_style",
    "lr_warmup_iters",
    "lr_decay_iters",
    "lr_wsd_decay_iters",
    "lr_wsd_decay_style",
    "decoupled_lr",
    "decoupled_min_lr",
    "weight_decay",
    "start_weight_decay",
    "end_weight_decay",
    "weight_decay_incr_style",
)
"""The options of the schedule, in the group `optimizer`."""

TOKENIZER = {
    "tokenizer_type",
    "tokenizer_model",
    "vocab_size",
    "tiktoken_pattern",
    "tiktoken_num_special_tokens",
    "tiktoken_special_tokens",
}
"""Whatever says which tokenizer it is, in the group `data`: its identity is compared instead."""

MAY_CHANGE = {
    "model": {"attention_dropout", "hidden_dropout", "make_vocab_size_divisible_by"},
    "fwpkm": {
        "topk",
        "chunk_size",
        "lookahead",
        "inner_lr",
        "addressing_weight",
        "boundary",
        "reset",
        "dp_sync",
        "dp_sync_interval",
        "table_dtype",
        "undo_log",
    },
    "parallel": {
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "num_virtual_stages_per_pipeline_rank",
        "context_parallel_size",
        "sequence_parallel",
        "grad_reduce_in_bf16",
    },
    "optimizer": {*SCHEDULE, "adam_beta1", "adam_beta2", "adam_eps", "clip_grad"},
    "data": {"data_path", "train_data_path", "valid_data_path", "test_data_path"},
    "training": {
        "micro_batch_size",
        "global_batch_size",
        "train_iters",
        "calculate_per_token_loss",
        "recompute_granularity",
        "recompute_method",
        "recompute_num_layers",
        "recompute_modules",
        "cpu_offloading_num_layers",
        "deterministic",
        "divergence_factor",
    },
}  # fmt: skip
"""These may have other values from a resumed run on, which is announced (tests/training/test_resume_options.py)."""

NO_MATTER = {
    "model": {"max_position_embeddings"},
    "fwpkm": {"implementation", "load_dp_rule", "check_consistency_interval"},
    "parallel": {
        "distributed_backend",
        "distributed_timeout_minutes",
        "overlap_grad_reduce",
        "rendezvous_timeout_minutes",
    },
    "data": {
        "data_cache_path",
        "data_args_path",  # what the files hold stands in data_path and its like
        "per_split_data_args_path",
        "num_workers",
        *TOKENIZER,
    },
    "training": {
        "skip_train",
        "exit_interval",
        "exit_duration_in_mins",
        "eval_interval",
        "eval_iters",
        "num_threads",
        "manual_gc",
        "manual_gc_interval",
        "manual_gc_eval",
        "dry_run",
        "dry_run_all",
        "check_weight_hash_across_dp_replicas_interval",
    },
}  # fmt: skip
"""These change nothing of what is learned, and neither do the groups `checkpoint` and `logging`."""

_NO_MATTER_GROUPS = {"checkpoint", "logging"}

Kind = Literal["architecture", "same run", "free"]


@dataclass(frozen=True)
class Difference:
    """One flag whose value is another in the checkpoint than in this run."""

    flag: str
    saved: Any
    given: Any
    kind: Kind
    """architecture: the weights do not fit; same run: the run could not continue bit for bit; free: may change."""

    def __str__(self) -> str:
        """`--num-layers is 4 there and 6 here`."""
        return f"{self.flag} is {_spell(self.saved)} there and {_spell(self.given)} here"


def flag_name(group: str, field_name: str) -> str:
    """The command-line flag of a field of PretrainConfig's group."""
    return "--" + PREFIXES.get(group, "") + field_name.replace("_", "-")


def differences(saved: PretrainConfig, given: PretrainConfig) -> list[Difference]:
    """All flags that matter and differ, in the order of the configuration."""
    found = []
    for group in fields(PretrainConfig):
        old, new = getattr(saved, group.name), getattr(given, group.name)
        if group.name in _NO_MATTER_GROUPS:
            continue
        for field in fields(old):
            before, now = getattr(old, field.name), getattr(new, field.name)
            if before != now and field.name not in NO_MATTER.get(group.name, ()):
                kind = "same run" if _makes_groups(field.name, before, now) else _kind(group.name, field.name)
                found.append(Difference(flag_name(group.name, field.name), before, now, kind))
    return found


def check_resumable(saved: PretrainConfig, given: PretrainConfig, where: str, *, finetune: bool) -> list[str]:
    """Refuse what cannot go on; returns notices about flags that changed and may.

    `where` names the checkpoint in the message. With `finetune` only the weights must fit. Raises ValueError that names
    every offending flag with both values.
    """
    found = differences(saved, given)
    kinds = {"architecture"} if finetune else {"architecture", "same run"}
    wrong = [difference for difference in found if difference.kind in kinds]
    if wrong:
        advice = "give the saved values"
        if all(difference.kind == "same run" for difference in wrong):
            advice += f", or start a new run from its weights with --load {where} --finetune"
        raise ValueError(f"cannot continue from {where}: {'; '.join(map(str, wrong))}; {advice}")
    if finetune:
        return _another_initial_memory(saved, given)
    return [f"changed from here on: {difference}" for difference in found]


def _another_initial_memory(saved: PretrainConfig, given: PretrainConfig) -> list[str]:
    """A notice where resets bring another memory than the weights have learned with."""
    before, now = saved.training.seed, given.training.seed
    if before == now or given.fwpkm.reset == "never" or not given.fwpkm.layer_numbers:
        return []
    return [
        f"--seed is {before} there and {now} here: --fwpkm-reset {given.fwpkm.reset} puts back the initial memory of "
        f"seed {now}, and the weights were trained with that of seed {before}; give --seed {before} to keep it"
    ]


def check_same_schedule(saved: PretrainConfig, given: PretrainConfig, where: str) -> None:
    """Refuse another schedule than the checkpoint's, as --no-override-opt-param-scheduler asks.

    Raises ValueError that names every option that differs with both values.
    """
    flags = {flag_name("optimizer", name) for name in SCHEDULE}
    if given.optimizer.weight_decay_incr_style != "constant":
        flags.add(flag_name("training", "train_iters"))  # until then it grows
    found = [one for one in differences(_with_ends(saved), _with_ends(given)) if one.flag in flags]
    if found:
        raise ValueError(
            f"cannot continue from {where} with --no-override-opt-param-scheduler: {'; '.join(map(str, found))}; give "
            "the saved values, or take them with --use-checkpoint-opt-param-scheduler, or these with "
            "--override-opt-param-scheduler"
        )


def _with_ends(config: PretrainConfig) -> PretrainConfig:
    """With the end of the decay as a number."""
    if config.optimizer.lr_decay_iters is not None:
        return config
    return replace(config, optimizer=replace(config.optimizer, lr_decay_iters=config.training.train_iters))


def _makes_groups(name: str, before: Any, now: Any) -> bool:
    """Whether a change is to other parameter groups, which the saved state of the optimizer does not fit."""
    return name == "decoupled_lr" and (before is None) != (now is None)


def _kind(group: str, name: str) -> Kind:
    if name in ARCHITECTURE.get(group, ()):
        return "architecture"
    assert name in SAME_RUN.get(group, ()) or name in MAY_CHANGE.get(group, ()), f"{group}.{name} is in no list"
    return "same run" if name in SAME_RUN.get(group, ()) else "free"


def _spell(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, tuple):
        return " ".join(map(format_item, value)) or "(empty)"
    return "none" if value is None else format_item(value)
