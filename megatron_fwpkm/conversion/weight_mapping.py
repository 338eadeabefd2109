"""Translates slow weights from Megatron to Hugging Face form, by the rules of the kinds of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..config.layer_kinds import LayerParts
from .weight_rules import KIND_RULES, LAYER_RULES, MODEL_RULES, Rule, WeightShapes


def model_rules(plan: Sequence[LayerParts]) -> list[Rule]:
    """The rules of a model with every name written out.

    Args:
        plan: what its layers are made of.
    """
    found = list(MODEL_RULES)
    for layer, parts in enumerate(plan):
        patterns = [*LAYER_RULES, *(rule for kind in parts.names for rule in KIND_RULES[kind])]
        for rule in patterns:
            for tensor in ("weight", "bias") if "{tensor}" in rule.megatron else ("",):
                hf = tuple(name.format(layer=layer, tensor=tensor) for name in rule.hf)
                found.append(Rule(rule.megatron.format(layer=layer, tensor=tensor), hf, rule.transform))
    return found


class WeightPart(NamedTuple):
    """Hugging Face tensors that come from one read."""

    names: tuple[str, ...]
    read: Callable[[], tuple[Tensor, ...]]
    """Reads and translates them; they may be views of one tensor, or the source itself."""


def megatron_to_hf(
    megatron: Mapping[str, Tensor], shapes: WeightShapes, plan: Sequence[LayerParts], expected: Iterable[str]
) -> list[WeightPart]:
    """How to translate whole Megatron tensors, of which none is read yet.

    Args:
        megatron: tensors by Megatron name; entries that end in `_extra_state` are passed over.
        shapes: the model's sizes.
        plan: what its layers are made of.
        expected: every Hugging Face name that must come out.

    Raises:
        ValueError: names the table does not know, names that are missing or surplus; lists all of them. Reading raises
            it for a shape that does not fit.
    """
    rules = {rule.megatron: rule for rule in model_rules(plan)}
    named = [name for name in megatron if not name.endswith("_extra_state")]
    unknown = [name for name in named if name not in rules]
    parts = [_part(megatron, rules[name], shapes) for name in named if name in rules]
    _check_names(unknown, {name for part in parts for name in part.names}, expected)
    return parts


def _part(megatron: Mapping[str, Tensor], rule: Rule, shapes: WeightShapes) -> WeightPart:
    def read() -> tuple[Tensor, ...]:
        """The tensors of the rule."""
        tensor = megatron[rule.megatron]
        try:
            return rule.transform.to_hf(tensor, shapes)
        except ValueError as error:
            raise ValueError(f"{rule.megatron}: {error}") from error

    return WeightPart(rule.hf, read)


def _check_names(unknown: list[str], translated: set[str], expected: Iterable[str]) -> None:
    wanted = set(expected)
    missing = sorted(wanted - translated)
    surplus = sorted(translated - wanted)
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("tensors without a conversion rule", sorted(unknown)),
            ("missing Hugging Face tensors", missing),
            ("unexpected Hugging Face tensors", surplus),
        )
        if names
    ]
    if problems:
        raise ValueError("; ".join(problems))
