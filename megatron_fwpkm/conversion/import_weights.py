"""The tensors of a checkpoint that is made of an export, each read piece by piece when it is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..checkpoint.store_layout import key_of
from ..checkpoint.tensor_writer import PlannedTensor, RowPiece, whole
from ..config.layer_kinds import LayerParts
from ..hf import FwPKMForCausalLM
from ..hf.drawn_tables import drawn_tables
from ..hf.stored_weights import Stored
from .delta_net_transforms import InProjection
from .weight_files import DTYPES
from .weight_mapping import model_rules
from .weight_rules import GateAndUp, GroupedHeads, Rule, Same, Vocabulary, WeightShapes

PIECE_BYTES = 1 << 23
"""About how much of a tensor is in memory where its rows keep their order."""
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
assert set(_STORED.values()) == set(DTYPES.values())


class PlannedWeights(NamedTuple):
    """What an imported checkpoint holds, none of it read yet."""

    slow: dict[str, PlannedTensor]
    """By Megatron's names."""
    fast: dict[str, PlannedTensor]
    """By the keys of the fast-weight store, as replica 0."""

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(tensor.bytes for tensors in self for tensor in tensors.values())


def planned_weights(
    stored: Mapping[str, Stored], model: FwPKMForCausalLM, shapes: WeightShapes, plan: Sequence[LayerParts]
) -> PlannedWeights:
    """How to make a checkpoint's tensors of those of an export.

    Args:
        stored: the tensors of the export's files.
        model: without numbers, for the names and shapes that the export must have.
        shapes: the model's sizes; `padded_vocab_size` is the checkpoint's.
        plan: what its layers are made of.

    Raises:
        ValueError: tensors that no rule maps, that are missing or surplus, or have another shape or dtype than the
            model; all of them. Reading raises it for a number that is not finite.
    """
    tables = {name for name, _ in model.named_buffers()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    rules = {name: rule for rule in model_rules(plan) for name in rule.hf}
    _check(stored, expected, tables, rules)
    wanted = {rule.megatron: rule for name, rule in rules.items() if name in expected}
    return PlannedWeights(
        {name: _slow(rule, [stored[part] for part in rule.hf], shapes) for name, rule in wanted.items()},
        {
            _store_key(name): _rows_in_order([name], [stored[name]]) if name in expected else _drawn(name, model)
            for name in tables
        },
    )


def _check(
    stored: Mapping[str, Stored],
    expected: Mapping[str, tuple[int, ...]],
    tables: set[str],
    rules: Mapping[str, Rule],
) -> None:
    """Raise ValueError for everything that keeps an export's tensors from being those of the model."""
    found = {name: tensor for name, tensor in stored.items() if name in expected}
    halves = {part for name in expected if name in rules for part in rules[name].hf} - expected.keys()
    wrong = {
        "tensors that are not part of this model": [name for name in stored if name not in expected],
        "missing tensors": [name for name in expected if name not in stored],
        "tensors without a conversion rule": [
            name for name in expected if name not in tables and (name not in rules or halves & {*rules[name].hf})
        ],
        "wrong shapes": [
            f"{name} has {list(tensor.shape)}, but config.json makes it {list(expected[name])}"
            for name, tensor in found.items() if tensor.shape != expected[name]
        ],
        "wrong dtypes": [
            f"{name} is {tensor.dtype}, not {'F32' if name in tables else ', '.join(_STORED)}"
            for name, tensor in found.items() if tensor.dtype not in (["F32"] if name in tables else _STORED)
        ],
    }  # fmt: skip
    parts = {}
    for name, rule in rules.items():
        if name in found and name == rule.hf[0] and all(part in found for part in rule.hf):
            parts[rule.megatron] = {found[part].dtype for part in rule.hf}
    wrong["tensors of one Megatron tensor in several dtypes"] = [n for n, kinds in parts.items() if len(kinds) > 1]
    listed = [f"{what}: {', '.join(sorted(names))}" for what, names in wrong.items() if names]
    if listed:
        raise ValueError("; ".join(listed))


def _store_key(name: str) -> str:
    """`layer2/replica0/values` of `model.layers.1.memory.values`."""
    layer, table = _layer_and_table(name)
    return key_of(layer + 1, 0, table)


def _layer_and_table(name: str) -> tuple[int, str]:
    """A layer, counted from 0, and the name of one of its tables."""
    before, _, table = name.rpartition(".memory.")
    return int(before.rpartition(".")[2]), table


def _drawn(name: str, model: FwPKMForCausalLM) -> PlannedTensor:
    """A table that the files of an export do not have, which is drawn as the run drew it."""
    config, (layer, table) = model.config, _layer_and_table(name)
    assert config.fwpkm_drawn_tables is not None
    seed, dtype = (config.fwpkm_drawn_tables[key] for key in ("seed", "table_dtype"))
    shape = tuple(model.get_buffer(name).shape)
    return whole(shape, torch.float32, lambda: drawn_tables(config, layer, seed, dtype)[table])


def _slow(rule: Rule, parts: Sequence[Stored], shapes: WeightShapes) -> PlannedTensor:
    """The Megatron tensor of a rule. Where it has the rows of its parts in their order, a few are read at a time."""
    if isinstance(rule.transform, Same | GateAndUp):
        return _rows_in_order(rule.hf, parts)
    if isinstance(rule.transform, Vocabulary):
        return _padded(_rows_in_order(rule.hf, parts), shapes.padded_vocab_size)
    if isinstance(rule.transform, GroupedHeads):
        return _by_group(rule, parts, shapes, "num_query_groups")
    if isinstance(rule.transform, InProjection):
        return _by_group(rule, parts, shapes, "linear_key_heads")
    dtype = _STORED[parts[0].dtype]
    empty = tuple(torch.empty(part.shape, dtype=dtype, device="meta") for part in parts)
    shape = tuple(rule.transform.to_megatron(empty, shapes).shape)

    def read() -> Tensor:
        """The whole tensor."""
        found = tuple(_rows(name, part, 0, part.shape[0]) for name, part in zip(rule.hf, parts, strict=True))
        return rule.transform.to_megatron(found, shapes)

    return whole(shape, dtype, read)


def _by_group(rule: Rule, parts: Sequence[Stored], shapes: WeightShapes, groups: str) -> PlannedTensor:
    """A tensor that has everything of one group of heads after the other; a part has its rows of them in this order.

    Args:
        rule: whose transform makes any number of groups.
        parts: what is stored.
        shapes: of the whole model.
        groups: the field of `shapes` with the number of groups.
    """
    count, dtype = getattr(shapes, groups), _STORED[parts[0].dtype]
    rows = sum(part.shape[0] for part in parts) // count
    others = parts[0].shape[1:]
    step = max(1, PIECE_BYTES // (rows * math.prod(others) * dtype.itemsize))

    def read(begin: int, end: int) -> Tensor:
        """The rows of some groups."""
        sizes = [part.shape[0] // count for part in parts]
        found = tuple(
            _rows(name, part, begin * size, end * size) for name, part, size in zip(rule.hf, parts, sizes, strict=True)
        )
        some: dict[str, Any] = {groups: end - begin}
        return rule.transform.to_megatron(found, replace(shapes, **some))

    ends = [(begin, min(begin + step, count)) for begin in range(0, count, step)]
    pieces = [RowPiece(begin * rows, (end - begin) * rows, partial(read, begin, end)) for begin, end in ends]
    return PlannedTensor((count * rows, *others), dtype, tuple(pieces))


def _rows_in_order(names: Sequence[str], parts: Sequence[Stored]) -> PlannedTensor:
    """Tensors one after the other, in pieces of `PIECE_BYTES`."""
    dtype, others = _STORED[parts[0].dtype], parts[0].shape[1:]
    step = max(1, PIECE_BYTES // (math.prod(others) * dtype.itemsize or 1))
    pieces, first = [], 0
    for name, part in zip(names, parts, strict=True):
        for begin in range(0, part.shape[0], step):
            end = min(begin + step, part.shape[0])
            pieces.append(RowPiece(first + begin, end - begin, partial(_rows, name, part, begin, end)))
        first += part.shape[0]
    return PlannedTensor((first, *others), dtype, tuple(pieces))


def _padded(tensor: PlannedTensor, rows: int) -> PlannedTensor:
    """The rows of a vocabulary, and behind them as many as its padding has, each their mean.

    Megatron's softmax is over the padding, too. A row of zeros would have the logit 0, which can be above all others.
    The logit of the mean is the mean of the logits, by which n rows of padding raise the loss of no token by more than
    log(1 + n / vocabulary).
    """
    count = rows - tensor.shape[0]
    if not count:
        return tensor

    def read() -> Tensor:
        """The padding."""
        total = torch.zeros(tensor.shape[1:], dtype=torch.float64)
        for piece in tensor.pieces:
            total += piece.read().sum(0, dtype=torch.float64)
        return (total / tensor.shape[0]).to(tensor.dtype).repeat(count, *(1 for _ in tensor.shape[1:]))

    padding = RowPiece(tensor.shape[0], count, read)
    return PlannedTensor((rows, *tensor.shape[1:]), tensor.dtype, (*tensor.pieces, padding))


def _rows(name: str, stored: Stored, begin: int, end: int) -> Tensor:
    """Some rows of a tensor of a file, which is opened for them alone: nothing of it stays mapped.

    Raises:
        ValueError: a number is not finite.
    """
    with safe_open(stored.file, framework="pt") as file:
        found: Tensor = file.get_slice(name)[begin:end]
    if not math.isfinite(found.sum(dtype=torch.float32)) and not found.isfinite().all():
        raise ValueError(
            f"{stored.file}: {name} contains NaN or infinite numbers: the weights are damaged or training diverged"
        )
    return found
