"""What a run takes from its checkpoint's configuration before anything is built.

--use-checkpoint-args takes the model's shape, --use-checkpoint-opt-param-scheduler the schedule; as in Megatron-LM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..config import OptimizerConfig, PretrainConfig
from ..config.field_metadata import (
    ARCHITECTURE,
    SCHEDULE,
    TAKEN_UNLESS_GIVEN,
    TAKEN_WITH_SHAPE,
    TOKENIZER,
    field_metadata,
    marked,
)
from ..config.loading import CHECKPOINT, DEFAULT, Resolved, option_groups
from .record import read_record
from .saved_config import read_saved_config
from .source import find_source


def with_checkpoint_values(resolved: Resolved) -> Resolved:
    """`resolved` with the values that its flags take from the checkpoint it starts from, and notices about them.

    Nothing changes if there is no checkpoint yet. Raises ValueError for a missing or incomplete checkpoint.
    """
    chosen = resolved.config.checkpoint
    if not (chosen.use_checkpoint_args or chosen.use_checkpoint_opt_param_scheduler):
        return resolved
    source = find_source(chosen)
    if source is None:
        return resolved
    read_record(source.folder)  # refuses what is no checkpoint
    saved = read_saved_config(source.folder)
    taken: dict[str, dict[str, Any]] = {}
    if chosen.use_checkpoint_args:
        taken = _shape(resolved, saved)
    if chosen.use_checkpoint_opt_param_scheduler and (source.resumed or not chosen.finetune):
        taken["optimizer"] = _schedule(saved)
    return _replaced(resolved, taken, f"{CHECKPOINT}{source.folder}")


def _shape(resolved: Resolved, saved: PretrainConfig) -> dict[str, dict[str, Any]]:
    """The model's shape and tokenizer, by group and field."""
    taken: dict[str, dict[str, Any]] = {}
    for group, cls, found in option_groups():
        for option in found:
            metadata = field_metadata(cls)[option.field_name]
            if TOKENIZER in metadata or TAKEN_UNLESS_GIVEN in metadata:
                wanted = resolved.value_sources[option.flag] == DEFAULT
            else:
                wanted = ARCHITECTURE in metadata or TAKEN_WITH_SHAPE in metadata
            if wanted:
                taken.setdefault(group, {})[option.field_name] = getattr(getattr(saved, group), option.field_name)
    return taken


def _schedule(saved: PretrainConfig) -> dict[str, Any]:
    """The schedule, whose decay ends where the saved run would have ended it."""
    taken = {name: getattr(saved.optimizer, name) for name in marked(OptimizerConfig, SCHEDULE)}
    if taken["lr_decay_iters"] is None:
        taken["lr_decay_iters"] = saved.training.train_iters
    return taken


def _replaced(resolved: Resolved, taken: dict[str, dict[str, Any]], source: str) -> Resolved:
    groups = {name: replace(getattr(resolved.config, name), **values) for name, values in taken.items()}
    config = replace(resolved.config, **groups)
    sources, said = dict(resolved.value_sources), []
    for flag, before, now in _changes(resolved.config, config, taken):
        if before != now or sources[flag] == DEFAULT:
            replaced = f" (instead of {before}, {sources[flag]})" if sources[flag] != DEFAULT else ""
            said += [f"{flag} {now}{replaced}"] if before != now else []
            sources[flag] = source
    notices = (f"taken from {source}: {', '.join(said)}",) if said else ()
    return replace(resolved, config=config, value_sources=sources, notices=(*resolved.notices, *notices))


def _changes(
    old: PretrainConfig, new: PretrainConfig, taken: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, str, str]]:
    """(flag, old value, new value) of every option that was taken, as one types them."""
    for group, _, found in option_groups():
        for option in found:
            if option.field_name in taken.get(group, ()):
                values = (option.format(getattr(getattr(config, group), option.field_name)) for config in (old, new))
                yield (option.flag, *values)  # type: ignore[misc]
