"""How the slow weights of every kind of layer are named and laid out in Megatron and in Hugging Face form: one table.

A rule pairs one Megatron tensor with one or more Hugging Face tensors. In its patterns `{layer}` is a layer number
(both sides count from 0) and `{tensor}` is `weight` or `bias`. Fast weights are not in the table: they come from the
fast-weight store, whole, under `model.layers.{layer}.memory` and their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..config import PretrainConfig
from ..ops.initialization import initial_mlp_weights, initial_sub_keys, initial_values
from .delta_net_transforms import Convolution, InProjection


@dataclass(frozen=True)
class WeightShapes:
    """The sizes that transforms need.

    Attributes:
        num_query_groups: key/value heads.
        queries_per_group: query heads that share one of them.
        head_dim: width of a head.
        vocab_size: rows of the embedding in Hugging Face form.
        padded_vocab_size: rows in Megatron form.
        output_gate: whether attention has gates, as many and as wide as query heads.
        linear_key_heads: key heads of linear attention.
        linear_value_heads: value heads of linear attention.
        linear_key_dim: width of a key head of linear attention.
    """

    num_query_groups: int
    queries_per_group: int
    head_dim: int
    vocab_size: int
    padded_vocab_size: int
    output_gate: bool = False
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    linear_key_dim: int = 0


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
    """Rows beyond the vocabulary are padding: cut on the way out; `import_weights` adds the rows of an import."""

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
    """Megatron stacks, group after group, the query heads of a group, their gates, its key head and its value head.

    Gates are there with an output gate. In Hugging Face form the gate of a head then follows its query in `q_proj`.
    """

    def to_hf(self, tensor: Tensor, shapes: WeightShapes) -> tuple[Tensor, ...]:
        """The query, key and value projections."""
        queries = [shapes.queries_per_group] * (2 if shapes.output_gate else 1)
        heads = sum(queries) + 2
        _expect_rows(tensor, shapes.num_query_groups * heads * shapes.head_dim, "query, key and value heads")
        groups = tensor.view(shapes.num_query_groups, heads, shapes.head_dim, *tensor.shape[1:])
        *queries_and_gates, keys, values = groups.split([*queries, 1, 1], dim=1)
        return tuple(part.flatten(0, 2) for part in (torch.cat(queries_and_gates, dim=2), keys, values))

    def to_megatron(self, tensors: tuple[Tensor, ...], shapes: WeightShapes) -> Tensor:
        """The three projections, stacked by group."""
        width = shapes.head_dim
        heads = [tensor.unflatten(0, (shapes.num_query_groups, -1, width)) for tensor in tensors[1:]]
        wide = 2 * width if shapes.output_gate else width
        queries = tensors[0].unflatten(0, (shapes.num_query_groups, -1, wide)).split(width, dim=2)
        return torch.cat([*queries, *heads], dim=1).flatten(0, 2)


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

MODEL_RULES: tuple[Rule, ...] = (
    Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Vocabulary()),
    Rule("output_layer.weight", ("lm_head.weight",), Vocabulary()),
    Rule("decoder.final_layernorm.weight", ("model.norm.weight",), Same()),
)
"""What stands outside the layers."""

LAYER_RULES: tuple[Rule, ...] = (
    Rule(f"{_M}.input_layernorm.weight", (f"{_H}.input_layernorm.weight",), Same()),
    Rule(f"{_M}.pre_mlp_layernorm.weight", (f"{_H}.post_attention_layernorm.weight",), Same()),
)
"""What every layer has, whatever its parts are."""

_MEMORY_BLOCK = tuple(
    Rule(f"{_M}.memory.{part}_{module}", (f"{_H}.memory.{part}_{module}",), Same())
    for part in ("query", "value", "gate", "output")
    for module in ("norm.weight", "proj.{tensor}")
)
"""What stands around a memory of any kind."""


def _initial_product_keys(config: PretrainConfig, layer_number: int) -> dict[str, Tensor]:
    sizes, seed = config.fwpkm, config.training.seed
    sub_keys, values = initial_sub_keys(sizes, seed, layer_number), initial_values(sizes, seed, layer_number)
    return {"sub_keys": sub_keys, "values": values}


def _initial_fast_mlp(config: PretrainConfig, layer_number: int) -> dict[str, Tensor]:
    return initial_mlp_weights(config.fwmlp, config.training.seed, layer_number)._asdict()


_ATTENTION = (
    Rule(
        f"{_M}.self_attention.linear_qkv.{{tensor}}",
        tuple(f"{_H}.self_attn.{part}_proj.{{tensor}}" for part in "qkv"),
        GroupedHeads(),
    ),
    Rule(f"{_M}.self_attention.q_layernorm.weight", (f"{_H}.self_attn.q_norm.weight",), Same()),
    Rule(f"{_M}.self_attention.k_layernorm.weight", (f"{_H}.self_attn.k_norm.weight",), Same()),
    Rule(f"{_M}.self_attention.linear_proj.{{tensor}}", (f"{_H}.self_attn.o_proj.{{tensor}}",), Same()),
)

KIND_RULES: dict[str, tuple[Rule, ...]] = {
    "fa": _ATTENTION,
    "swa": _ATTENTION,
    "gdn": (
        Rule(
            f"{_M}.self_attention.in_proj.weight",
            (f"{_H}.linear_attn.in_proj_qkvz.weight", f"{_H}.linear_attn.in_proj_ba.weight"),
            InProjection(),
        ),
        Rule(f"{_M}.self_attention.convolution", (f"{_H}.linear_attn.conv1d.weight",), Convolution()),
        Rule(f"{_M}.self_attention.dt_bias", (f"{_H}.linear_attn.dt_bias",), Same()),
        Rule(f"{_M}.self_attention.A_log", (f"{_H}.linear_attn.A_log",), Same()),
        Rule(f"{_M}.self_attention.norm_weight", (f"{_H}.linear_attn.norm.weight",), Same()),
        Rule(f"{_M}.self_attention.out_proj.weight", (f"{_H}.linear_attn.out_proj.weight",), Same()),
    ),
    "swiglu": (
        Rule(
            f"{_M}.mlp.linear_fc1.{{tensor}}",
            (f"{_H}.mlp.gate_proj.{{tensor}}", f"{_H}.mlp.up_proj.{{tensor}}"),
            GateAndUp(),
        ),
        Rule(f"{_M}.mlp.linear_fc2.{{tensor}}", (f"{_H}.mlp.down_proj.{{tensor}}",), Same()),
    ),
    "pkm": (
        *(
            Rule(f"{_M}.mlp.{name}", (f"{_H}.mlp.{name}",), Same())
            for name in ("sub_keys", "values", "query_norm.weight")
        ),
        *(
            Rule(f"{_M}.mlp.{part}_proj.{{tensor}}", (f"{_H}.mlp.{part}_proj.{{tensor}}",), Same())
            for part in ("query", "gate", "output")
        ),
    ),
    "fwpkm": _MEMORY_BLOCK,
    "fwmlp": _MEMORY_BLOCK,
}
"""By the name of the kind."""


KIND_TABLES: dict[str, Callable[[PretrainConfig, int], dict[str, Tensor]]] = {
    "fwpkm": _initial_product_keys,
    "fwmlp": _initial_fast_mlp,
}
"""Of kinds with fast weights: the whole ones before any write by name, from the configuration and a layer's number."""


def register_rules(kind: str, rules: tuple[Rule, ...]) -> None:
    """Add a row to the table; a second one of the same name takes its place."""
    KIND_RULES[kind] = rules


def _expect_rows(tensor: Tensor, rows: int, what: str) -> None:
    if tensor.shape[0] != rows:
        raise ValueError(f"the tensor has {tensor.shape[0]} rows, expected {rows} ({what})")
