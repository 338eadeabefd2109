"""Whether a run can continue from a checkpoint: which flags differ, and what that means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..config import ModelConfig, OptimizerConfig, PretrainConfig
from ..config.derived import ffn_hidden_size, kv_channels, num_query_groups
from ..config.field_metadata import ARCHITECTURE, NOT_COMPARED, SAME_RUN, SCHEDULE, OnResume, marked, on_resume
from ..config.layer_kinds import layer_plan
from ..config.layer_pattern import layer_windows
from ..config.loading import PREFIXES, option_groups
from ..config.memories import memory_kinds
from ..config.pswa import pswa_window


@dataclass(frozen=True)
class Difference:
    """One flag whose value in the checkpoint differs from its value in this run."""

    flag: str
    saved: str
    given: str
    kind: OnResume

    def __str__(self) -> str:
        """`--num-layers is 4 in the checkpoint and 6 in this run`."""
        return f"{self.flag} is {self.saved} in the checkpoint and {self.given} in this run"


def flag_name(group: str, field_name: str) -> str:
    """The command-line flag of a field of PretrainConfig's group."""
    return "--" + PREFIXES.get(group, "") + field_name.replace("_", "-")


def differences(saved: PretrainConfig, given: PretrainConfig) -> list[Difference]:
    """All flags that matter and differ, in the order of the configuration.

    Where they give every layer the same parts, patterns and numbers of layers do not differ, however they are spelled.
    """
    found, alike = [], _spelled_differently(saved, given)
    for group, cls, known in option_groups():
        for option in known:
            name = option.field_name
            before, now = (getattr(getattr(config, group), name) for config in (saved, given))
            kind = SAME_RUN if _makes_groups(name, before, now) else on_resume(cls, name)
            if before != now and kind is not NOT_COMPARED and name not in alike:
                found.append(Difference(option.flag, option.format(before), option.format(now), kind))
    return found


_SIZES: dict[str, Callable[[ModelConfig], object]] = {
    "ffn_hidden_size": ffn_hidden_size,
    "kv_channels": kv_channels,
    "num_query_groups": num_query_groups,
    "yarn_original_max_position_embeddings": lambda model: (
        model.yarn_original_max_position_embeddings or model.seq_length
    ),
}
"""What a size is that follows from others where it is not given."""


def _spelled_differently(saved: PretrainConfig, given: PretrainConfig) -> tuple[str, ...]:
    """Fields that may differ because the layers are the same: of the same parts and sizes, with the same windows."""
    sizes = tuple(name for name, size in _SIZES.items() if size(saved.model) == size(given.model))
    return sizes + _same_parts(saved, given)


def _same_parts(saved: PretrainConfig, given: PretrainConfig) -> tuple[str, ...]:
    if layer_plan(saved) != layer_plan(given) or layer_windows(saved.model) != layer_windows(given.model):
        return ()
    same_in_training = pswa_window(saved) == pswa_window(given)
    return ("layer_pattern", "layer_numbers", *(["window_size"] if same_in_training else []))


def check_resumable(saved: PretrainConfig, given: PretrainConfig, where: str, *, finetune: bool) -> list[str]:
    """Refuse a run that cannot continue; returns notices about flags that changed and may change.

    `where` names the checkpoint in the message. With `finetune` only the weights must match. Raises ValueError that
    names every offending flag with both values.
    """
    found = differences(saved, given)
    notices = []
    if finetune and saved.pkm.layer_numbers != given.pkm.layer_numbers:
        notices = _other_mlps(saved, given)
        if not (saved.pkm.layer_numbers and given.pkm.layer_numbers):  # the sizes of one of them mean nothing
            found = [difference for difference in found if not difference.flag.startswith("--pkm-")]
    if finetune and layer_windows(saved.model) == layer_windows(given.model):  # otherwise it is of training steps only
        found = [difference for difference in found if difference.flag != "--window-size"]
    kinds = {ARCHITECTURE} if finetune else {ARCHITECTURE, SAME_RUN}
    wrong = [difference for difference in found if difference.kind in kinds]
    if wrong:
        advice = "use the saved values"
        if all(difference.kind is SAME_RUN for difference in wrong):
            advice += f", or start a new run from the checkpoint's weights with --load {where} --finetune"
        raise ValueError(f"cannot continue from {where}: {'; '.join(map(str, wrong))}; {advice}")
    if finetune:
        return notices + _another_initial_memory(saved, given)
    return [f"changed: {difference}" for difference in found]


def changed_model(saved: PretrainConfig, given: PretrainConfig) -> list[str]:
    """Notices about options of the model that weights of any value fit."""
    groups = {"model", *PREFIXES} - {"needle"}
    ours = {option.flag for group, _, known in option_groups() for option in known if group in groups}
    return [
        f"changed: {difference}"
        for difference in differences(saved, given)
        if difference.flag in ours and difference.kind is not ARCHITECTURE
    ]


def _other_mlps(saved: PretrainConfig, given: PretrainConfig) -> list[str]:
    """What happens to layers that have a static memory on one side and an MLP on the other."""
    before, now = set(saved.pkm.layer_numbers), set(given.pkm.layer_numbers)
    return [
        f"layers {' '.join(map(str, sorted(layers)))} have {ours} in this run and {theirs} in the checkpoint: {theirs} "
        f"is not loaded, and {ours} begins with its initial weights"
        for layers, ours, theirs in (
            (now - before, "a static memory", "an MLP"), (before - now, "an MLP", "a static memory"),
        )
        if layers
    ]  # fmt: skip


def _another_initial_memory(saved: PretrainConfig, given: PretrainConfig) -> list[str]:
    """A notice if resets restore a different memory from the one that the weights were trained with."""
    before, now = saved.training.seed, given.training.seed
    resets = [f"{memory.fast.prefix}reset {memory.options.reset}" for memory in memory_kinds(given)
              if memory.options.reset != "never"]  # fmt: skip
    if before == now or not resets:
        return []
    return [
        f"--seed is {before} in the checkpoint and {now} in this run: {' and '.join(resets)} "
        f"{'restores' if len(resets) == 1 else 'restore'} the "
        f"initial memory of seed {now}, but the weights were trained with that of seed {before}; use --seed {before} "
        "to keep it"
    ]


def check_same_schedule(saved: PretrainConfig, given: PretrainConfig, where: str) -> None:
    """Refuse a schedule that differs from the checkpoint's, as --no-override-opt-param-scheduler asks.

    Raises ValueError that names every option that differs with both values.
    """
    flags = {flag_name("optimizer", name) for name in marked(OptimizerConfig, SCHEDULE)}
    if given.optimizer.weight_decay_incr_style != "constant":
        flags.add(flag_name("training", "train_iters"))  # until then it grows
    found = [one for one in differences(_with_ends(saved), _with_ends(given)) if one.flag in flags]
    if found:
        raise ValueError(
            f"cannot continue from {where} with --no-override-opt-param-scheduler: {'; '.join(map(str, found))}; use "
            "the saved values, or select the checkpoint's with --use-checkpoint-opt-param-scheduler or this run's with "
            "--override-opt-param-scheduler"
        )


def _with_ends(config: PretrainConfig) -> PretrainConfig:
    """With the end of the decay as a number."""
    if config.optimizer.lr_decay_iters is not None:
        return config
    return replace(config, optimizer=replace(config.optimizer, lr_decay_iters=config.training.train_iters))


def _makes_groups(name: str, before: Any, now: Any) -> bool:
    """Whether a change makes different parameter groups, which do not match the saved state of the optimizer."""
    return name == "decoupled_lr" and (before is None) != (now is None)
