"""Translates slow weights between Megatron and Hugging Face form, by the rules of the kinds of every layer."""

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
    _check_names(unknown, {name for part in parts for name in part.names}, expected, "Hugging Face")
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


def hf_to_megatron(
    hf: Mapping[str, Tensor], shapes: WeightShapes, plan: Sequence[LayerParts], expected: Iterable[str]
) -> dict[str, Tensor]:
    """Translate Hugging Face tensors (without the memory's tables), the inverse of `megatron_to_hf`, at once.

    Raises:
        ValueError: as there.
    """
    rules = {part: rule for rule in model_rules(plan) for part in rule.hf}
    translated: dict[str, Tensor] = {}
    unknown, incomplete = [], []
    for name in hf:
        rule = rules.get(name)
        if rule is None:
            unknown.append(name)
            continue
        absent = [part for part in rule.hf if part not in hf]
        if absent:
            incomplete.extend(absent)
        elif name == rule.hf[0]:
            translated[rule.megatron] = rule.transform.to_megatron(tuple(hf[part] for part in rule.hf), shapes)
    if incomplete:
        raise ValueError(f"missing tensors: {_listed(sorted(set(incomplete)))}")
    _check_names(unknown, set(translated), expected, "Megatron")
    return translated


def _check_names(unknown: list[str], translated: set[str], expected: Iterable[str], side: str) -> None:
    wanted = set(expected)
    missing = sorted(wanted - translated)
    surplus = sorted(translated - wanted)
    problems = [
        f"{what}: {_listed(names)}"
        for what, names in (
            ("tensors without a conversion rule", sorted(unknown)),
            (f"missing {side} tensors", missing),
            (f"unexpected {side} tensors", surplus),
        )
        if names
    ]
    if problems:
        raise ValueError("; ".join(problems))


def _listed(names: list[str]) -> str:
    return ", ".join(names)
