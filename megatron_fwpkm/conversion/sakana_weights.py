"""The weights of the paper authors' checkpoints, as those of our Hugging Face model: pure functions on tensors.

What stands outside memories is named and laid out as in Transformers' Qwen3-Next, on both sides; so are the norms,
which multiply by 1 + weight, but for that of the gated delta net's heads, which multiplies by its weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..hf import FwPKMHFConfig

TIED = ("lm_head.weight", "model.embed_tokens.weight")
"""One tensor where `tie_word_embeddings` is on; a file may have it twice."""
_IN_A_LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<part>memory|mlp)\.(?P<tensor>.+)")
Shape = tuple[int | None, ...]
"""Of their tensor; None where any number of rows will do."""


class Change(Protocol):
    """How one of our tensors follows from theirs."""

    def shape(self, ours: torch.Size) -> Shape:
        """The shape of theirs, from that of ours."""

    def __call__(self, theirs: Tensor, ours: torch.Size) -> Tensor:
        """Ours."""


class Unchanged:
    """The same tensor on both sides."""

    def shape(self, ours: torch.Size) -> Shape:
        """The same."""
        return tuple(ours)

    def __call__(self, theirs: Tensor, ours: torch.Size) -> Tensor:
        """The tensor itself."""
        return theirs


class StackedSubKeys(Unchanged):
    """Theirs has the sub-keys of all heads and both halves below each other."""

    def shape(self, ours: torch.Size) -> Shape:
        """[2 * heads * n, key_dim/2]."""
        return (ours[:-1].numel(), ours[-1])

    def __call__(self, theirs: Tensor, ours: torch.Size) -> Tensor:
        """[heads, 2, n, key_dim/2]."""
        return theirs.view(ours)


class MeanOfRows(Unchanged):
    """Their gate is the mean of several outputs of a linear: one output with the mean of rows and biases."""

    def shape(self, ours: torch.Size) -> Shape:
        """Any number of rows."""
        return (None, *ours[1:])

    def __call__(self, theirs: Tensor, ours: torch.Size) -> Tensor:
        """One row."""
        return theirs.mean(0, keepdim=True)


class FromOne(Unchanged):
    """Theirs is what a norm multiplies by; ours is what that is above 1."""

    def __call__(self, theirs: Tensor, ours: torch.Size) -> Tensor:
        """The distance from 1."""
        return theirs - 1


@dataclass(frozen=True)
class TheirTensor:
    """Where a tensor of ours comes from: their name, and what is done to it."""

    name: str
    change: Change = Unchanged()


@dataclass(frozen=True)
class KindNames:
    """How the tensors of a kind are called in their files.

    Attributes:
        modules: by our names of modules.
        tensors: by our names of tensors, where a change is needed or a module is not enough.
    """

    modules: Mapping[str, str]
    tensors: Mapping[str, TheirTensor]

    def source(self, tensor: str) -> TheirTensor:
        """Of a tensor of ours, which is named from the part of the layer on."""
        if tensor in self.tensors:
            return self.tensors[tensor]
        module, _, last = tensor.rpartition(".")
        return TheirTensor(f"{self.modules[module]}.{last}")


KIND_NAMES: dict[str, KindNames] = {
    "fwpkm": KindNames(
        {
            "query_norm": "fw_q_norm", "query_proj": "fw_q_proj", "value_norm": "fw_v_norm", "value_proj": "fw_v_proj",
            "gate_norm": "fw_out_gate_norm", "output_norm": "fw_out_norm", "output_proj": "fw_out_proj",
        },
        {
            "sub_keys": TheirTensor("fwpkm.keys", StackedSubKeys()),
            "values": TheirTensor("fwpkm.values"),
            "gate_proj.weight": TheirTensor("fw_out_gate.weight", MeanOfRows()),
            "gate_proj.bias": TheirTensor("fw_out_gate.bias", MeanOfRows()),
        },
    ),
    "pkm": KindNames(
        {
            "query_proj": "pkm.query_proj.query_mlps.0", "gate_proj": "pkm.swilu_projection",
            "output_proj": "pkm.value_proj",
        },
        {
            "sub_keys": TheirTensor("pkm.keys", StackedSubKeys()),
            "values": TheirTensor("pkm.values.weight"),
            "query_norm.weight": TheirTensor("pkm.query_proj.norm.weight", FromOne()),
        },
    ),
}  # fmt: skip
"""Kinds whose tensors are called otherwise than ours, by the name of the kind."""


def our_weights(
    theirs: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], config: FwPKMHFConfig
) -> dict[str, Tensor]:
    """The tensors of our model, in float32, from those of a checkpoint.

    Args:
        theirs: by their names.
        shapes: of every tensor that our model has, by our names.
        config: of our model.

    Raises:
        ValueError: tensors that are missing, that no part of the model takes, or that have another shape; all named.
    """
    sources = {name: _source(name, config) for name in shapes if name != TIED[0] or not config.tie_word_embeddings}
    found = _without_copy(theirs, config)
    taken = {source.name for source in sources.values()}
    wrong = [
        problem
        for name, source in sources.items()
        if source.name in found and (problem := _shape_problem(source, found[source.name], shapes[name]))
    ]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("missing tensors", sorted(taken - found.keys())),
            ("tensors without a place in the model", sorted(found.keys() - taken)),
            ("tensors of another shape or type", wrong),
        )
        if names
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return {name: source.change(found[source.name].float(), shapes[name]) for name, source in sources.items()}


def _source(name: str, config: FwPKMHFConfig) -> TheirTensor:
    """Where a tensor of ours comes from."""
    match = _IN_A_LAYER.fullmatch(name)
    if match is None:
        return TheirTensor(name)
    layer = int(match["layer"])
    memory = match["part"] == "memory"
    names = KIND_NAMES.get("fwpkm" if memory else config.mlps[layer])
    if names is None:
        return TheirTensor(name)
    source = names.source(match["tensor"])
    return TheirTensor(f"model.layers.{layer}.{source.name}", source.change)


def _without_copy(theirs: Mapping[str, Tensor], config: FwPKMHFConfig) -> dict[str, Tensor]:
    """Their tensors without a second copy of the embedding."""
    head, embedding = TIED
    if not config.tie_word_embeddings or head not in theirs or embedding not in theirs:
        return dict(theirs)
    if not torch.equal(theirs[head], theirs[embedding]):
        raise ValueError(
            f"{head} differs from {embedding}, but tie_word_embeddings in config.json says that they are one tensor; "
            "set it to false"
        )
    return {name: tensor for name, tensor in theirs.items() if name != head}


def _shape_problem(source: TheirTensor, found: Tensor, ours: torch.Size) -> str | None:
    """What is wrong with the shape or dtype of one of their tensors; None for nothing."""
    if not found.is_floating_point():
        return f"{source.name} has dtype {str(found.dtype).removeprefix('torch.')}, expected a floating-point type"
    expected = source.change.shape(ours)
    fits = len(expected) == found.dim() and all(
        size == wanted or (wanted is None and size > 0) for size, wanted in zip(found.shape, expected, strict=True)
    )
    shown = ", ".join("any" if size is None else str(size) for size in expected)
    return None if fits else f"{source.name} has shape {list(found.shape)}, expected [{shown}]"
