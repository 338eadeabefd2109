"""Names and layouts of the slow weights in Megatron and in Hugging Face form: one table, read in both directions.

A rule pairs one Megatron tensor with one or more Hugging Face tensors. In its patterns `{layer}` is a layer number
(both sides count from 0) and `{kind}` is `weight` or `bias`. Fast weights are not in the table: they come from the
fast-weight store, whole, under `model.layers.{layer}.memory.{sub_keys,values}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightShapes:
    """The sizes that transforms need.

    Attributes:
        num_query_groups: key/value heads.
        queries_per_group: query heads that share one of them.
        head_dim: width of a head.
        vocab_size: rows of the embedding in Hugging Face form.
        padded_vocab_size: rows in Megatron form.
    """

    num_query_groups: int
    queries_per_group: int
    head_dim: int
    vocab_size: int
    padded_vocab_size: int


class Transform(Protocol):
    """How one Megatron tensor relates to its Hugging Face tensors."""

    def to_hf(self, tensor: Tensor, shapes: WeightShapes) -> tuple[Tensor, ...]:
        """Take a Megatron tensor apart."""

    def to_megatron(self, tensors: tuple[Tensor, ...], shapes: WeightShapes) -> Tensor:
        """Put it together again."""


class Same:
    """The same tensor on both sides."""

    def to_hf(self, tensor: Tensor, shapes: WeightShapes) -> tuple[Tensor, ...]:
        """The tensor itself."""
        return (tensor,)

    def to_megatron(self, tensors: tuple[Tensor, ...], shapes: WeightShapes) -> Tensor:
        """The tensor itself."""
        return tensors[0]


class Vocabulary:
    """Rows beyond the vocabulary are padding: cut on the way out, zero on the way in."""

    def to_hf(self, tensor: Tensor, shapes: WeightShapes) -> tuple[Tensor, ...]:
        """The rows of the vocabulary."""
        _expect_rows(tensor, shapes.padded_vocab_size, "the padded vocabulary")
        return (tensor[: shapes.vocab_size],)

    def to_megatron(self, tensors: tuple[Tensor, ...], shapes: WeightShapes) -> Tensor:
        """The rows of the vocabulary, and rows of zeros for the padding."""
        _expect_rows(tensors[0], shapes.vocab_size, "the vocabulary")
        padding = tensors[0].new_zeros(shapes.padded_vocab_size - shapes.vocab_size, *tensors[0].shape[1:])
        return torch.cat([tensors[0], padding])


class GroupedHeads:
    """Megatron stacks, group after group, the query heads of a group, its key head and its value head."""

    def to_hf(self, tensor: Tensor, shapes: WeightShapes) -> tuple[Tensor, ...]:
        """The query, key and value projections."""
        heads = shapes.queries_per_group + 2
        _expect_rows(tensor, shapes.num_query_groups * heads * shapes.head_dim, "query, key and value heads")
        groups = tensor.view(shapes.num_query_groups, heads * shapes.head_dim, *tensor.shape[1:])
        parts = groups.split([shapes.queries_per_group * shapes.head_dim, shapes.head_dim, shapes.head_dim], dim=1)
        return tuple(part.flatten(0, 1) for part in parts)

    def to_megatron(self, tensors: tuple[Tensor, ...], shapes: WeightShapes) -> Tensor:
        """The three projections, stacked by group."""
        groups = [tensor.unflatten(0, (shapes.num_query_groups, -1)) for tensor in tensors]
        return torch.cat(groups, dim=1).flatten(0, 1)


class GateAndUp:
    """Megatron stacks the two input projections of a SwiGLU, the gate first."""

    def to_hf(self, tensor: Tensor, shapes: WeightShapes) -> tuple[Tensor, ...]:
        """The gate projection and the up projection."""
        return tensor.chunk(2, dim=0)

    def to_megatron(self, tensors: tuple[Tensor, ...], shapes: WeightShapes) -> Tensor:
        """The two projections, stacked."""
        return torch.cat(tensors)


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    megatron: str
    hf: tuple[str, ...]
    transform: Transform


_M, _H = "decoder.layers.{layer}", "model.layers.{layer}"
TABLE: tuple[Rule, ...] = (
    Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Vocabulary()),
    Rule("output_layer.weight", ("lm_head.weight",), Vocabulary()),
    Rule("decoder.final_layernorm.weight", ("model.norm.weight",), Same()),
    Rule(f"{_M}.input_layernorm.weight", (f"{_H}.input_layernorm.weight",), Same()),
    Rule(
        f"{_M}.self_attention.linear_qkv.{{kind}}",
        tuple(f"{_H}.self_attn.{part}_proj.{{kind}}" for part in "qkv"),
        GroupedHeads(),
    ),
    Rule(f"{_M}.self_attention.q_layernorm.weight", (f"{_H}.self_attn.q_norm.weight",), Same()),
    Rule(f"{_M}.self_attention.k_layernorm.weight", (f"{_H}.self_attn.k_norm.weight",), Same()),
    Rule(f"{_M}.self_attention.linear_proj.{{kind}}", (f"{_H}.self_attn.o_proj.{{kind}}",), Same()),
    Rule(f"{_M}.pre_mlp_layernorm.weight", (f"{_H}.post_attention_layernorm.weight",), Same()),
    Rule(
        f"{_M}.mlp.linear_fc1.{{kind}}",
        (f"{_H}.mlp.gate_proj.{{kind}}", f"{_H}.mlp.up_proj.{{kind}}"),
        GateAndUp(),
    ),
    Rule(f"{_M}.mlp.linear_fc2.{{kind}}", (f"{_H}.mlp.down_proj.{{kind}}",), Same()),
    *(
        Rule(f"{_M}.memory.{part}_{module}", (f"{_H}.memory.{part}_{module}",), Same())
        for part in ("query", "value", "gate", "output")
        for module in ("norm.weight", "proj.{kind}")
    ),
)


def megatron_to_hf(megatron: Mapping[str, Tensor], shapes: WeightShapes, expected: Iterable[str]) -> dict[str, Tensor]:
    """Translate whole Megatron tensors.

    Args:
        megatron: tensors by Megatron name; entries that end in `_extra_state` are passed over.
        shapes: the model's sizes.
        expected: every Hugging Face name that must come out.

    Raises:
        ValueError: names the table does not know, names that are missing, or a shape that does not fit; lists them.
    """
    translated: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in megatron.items():
        if name.endswith("_extra_state"):
            continue
        found = _find(name, lambda rule: (rule.megatron,))
        if found is None:
            unknown.append(name)
            continue
        rule, fields = found
        try:
            parts = rule.transform.to_hf(tensor, shapes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        translated.update(zip((hf.format(**fields) for hf in rule.hf), parts, strict=True))
    _check_names(unknown, translated, expected, "Hugging Face")
    return translated


def hf_to_megatron(hf: Mapping[str, Tensor], shapes: WeightShapes, expected: Iterable[str]) -> dict[str, Tensor]:
    """Translate Hugging Face tensors (without the memory's tables), the inverse of :func:`megatron_to_hf`.

    Raises:
        ValueError: as there.
    """
    translated: dict[str, Tensor] = {}
    unknown, incomplete = [], []
    for name in hf:
        found = _find(name, lambda rule: rule.hf)
        if found is None:
            unknown.append(name)
            continue
        rule, fields = found
        names = [part.format(**fields) for part in rule.hf]
        absent = [part for part in names if part not in hf]
        if absent:
            incomplete.extend(absent)
        elif name == names[0]:
            translated[rule.megatron.format(**fields)] = rule.transform.to_megatron(
                tuple(hf[part] for part in names), shapes
            )
    if incomplete:
        raise ValueError(f"tensors are missing: {_listed(sorted(set(incomplete)))}")
    _check_names(unknown, translated, expected, "Megatron")
    return translated


def _find(name: str, patterns_of: Callable[[Rule], tuple[str, ...]]) -> tuple[Rule, dict[str, str]] | None:
    for rule in TABLE:
        for pattern in patterns_of(rule):
            match = _regular_expression(pattern).fullmatch(name)
            if match:
                return rule, match.groupdict()
    return None


def _regular_expression(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\{layer\}", r"(?P<layer>\d+)").replace(r"\{kind\}", "(?P<kind>weight|bias)")
    return re.compile(escaped)


def _check_names(unknown: list[str], translated: Mapping[str, Tensor], expected: Iterable[str], side: str) -> None:
    wanted = set(expected)
    missing = sorted(wanted - translated.keys())
    surplus = sorted(translated.keys() - wanted)
    problems = [
        f"{what}: {_listed(names)}"
        for what, names in (
            ("no rule of the weight table fits", sorted(unknown)),
            (f"nothing gives the {side} tensors", missing),
            (f"the {side} model has no place for", surplus),
        )
        if names
    ]
    if problems:
        raise ValueError("; ".join(problems))


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _expect_rows(tensor: Tensor, rows: int, what: str) -> None:
    if tensor.shape[0] != rows:
        raise ValueError(f"has {tensor.shape[0]} rows where {what} make {rows}")
