"""How the weights of a gated delta net are laid out on both sides; the names in Transformers are those of Qwen3-Next.

Megatron's side has everything key head after key head, so that tensor-parallel ranks have whole heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .weight_rules import WeightShapes


class InProjection:
    """One matrix with all rows of a key head together; Transformers has strengths and decays in one of their own."""

    def to_hf(self, tensor: Tensor, shapes: WeightShapes) -> tuple[Tensor, ...]:
        """Queries, keys, values and gates; strengths and decays; both key head after key head."""
        heads = _by_head(tensor, shapes)
        rates = 2 * shapes.linear_value_heads // shapes.linear_key_heads
        return tuple(part.flatten(0, 1) for part in heads.split([heads.shape[1] - rates, rates], 1))

    def to_megatron(self, tensors: tuple[Tensor, ...], shapes: WeightShapes) -> Tensor:
        """Both, interleaved by key head."""
        return torch.cat([_by_head(tensor, shapes) for tensor in tensors], 1).flatten(0, 1)


class Convolution:
    """Taps of every channel; Transformers has first all queries, then all keys, then all values, as a torch module."""

    def to_hf(self, tensor: Tensor, shapes: WeightShapes) -> tuple[Tensor, ...]:
        """From [key heads * channels, taps] to [channels of all, 1, taps]."""
        heads, width = _by_head(tensor, shapes), shapes.linear_key_dim
        parts = heads.split([width, width, heads.shape[1] - 2 * width], 1)
        return (torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(1),)

    def to_megatron(self, tensors: tuple[Tensor, ...], shapes: WeightShapes) -> Tensor:
        """Back again."""
        taps, keys = tensors[0].squeeze(1), shapes.linear_key_heads * shapes.linear_key_dim
        parts = taps.split([keys, keys, taps.shape[0] - 2 * keys])
        return torch.cat([_by_head(part, shapes) for part in parts], 1).flatten(0, 1)


def _by_head(tensor: Tensor, shapes: WeightShapes) -> Tensor:
    """[rows, ...] to [key heads, rows of one, ...].

    Raises:
        ValueError: the key heads do not divide the rows.
    """
    heads = shapes.linear_key_heads
    if tensor.shape[0] % heads:
        raise ValueError(f"the tensor has {tensor.shape[0]} rows, expected a multiple of {heads} (key heads)")
    return tensor.unflatten(0, (heads, -1))
