"""Whether a run may go on from a checkpoint: which flags differ, and what that means."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from ..config import PretrainConfig
from ..config.arguments import format_item
from ..config.loading import PREFIXES

_NOT_ARCHITECTURE = {
    "seq_length",
    "max_position_embeddings",
    "init_method_std",
    "embedding_init_method_std",
    "attention_dropout",
    "hidden_dropout",
    "make_vocab_size_divisible_by",
}
_MEMORY_ARCHITECTURE = {
    "layer_numbers",
    "num_heads",
    "num_subkeys",
    "key_dim",
    "value_dim",
    "score",
    "gate",
    "normalize_targets",
}
_SAME_RUN = {
    ("model", "seq_length"),
    ("data", "split"),
    ("data", "eod_mask_loss"),
    ("data", "reset_position_ids"),
    ("data", "reset_attention_mask"),
    ("training", "seed"),
    ("training", "bf16"),
    ("parallel", "use_distributed_optimizer"),
}
_NO_MATTER = {
    "checkpoint": None,  # the whole group
    "logging": None,
    "training": {
        "exit_interval",
        "exit_duration_in_mins",
        "eval_interval",
        "eval_iters",
        "num_threads",
        "dry_run",
        "dry_run_all",
        "check_weight_hash_across_dp_replicas_interval",
    },  # fmt: skip
    "data": {"data_cache_path", "num_workers", "tokenizer_model"},
    "parallel": {"distributed_backend", "distributed_timeout_minutes", "overlap_grad_reduce"},
    "fwpkm": {"implementation", "gate_bias_init", "load_dp_rule", "check_consistency_interval"},
    "model": {"init_method_std", "embedding_init_method_std", "max_position_embeddings"},
}

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
        ignored = _NO_MATTER.get(group.name, set())
        if ignored is None:
            continue
        old, new = getattr(saved, group.name), getattr(given, group.name)
        for field in fields(old):
            name = field.name
            if name in ignored or getattr(old, name) == getattr(new, name):
                continue
            flag = flag_name(group.name, name)
            found.append(Difference(flag, getattr(old, name), getattr(new, name), _kind(group.name, name)))
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
    return [] if finetune else [f"changed from here on: {difference}" for difference in found]


def _kind(group: str, name: str) -> Kind:
    if group == "model" and name not in _NOT_ARCHITECTURE or group == "fwpkm" and name in _MEMORY_ARCHITECTURE:
        return "architecture"
    return "same run" if group == "needle" or (group, name) in _SAME_RUN else "free"


def _spell(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, tuple):
        return " ".join(map(format_item, value)) or "(empty)"
    return "none" if value is None else format_item(value)
