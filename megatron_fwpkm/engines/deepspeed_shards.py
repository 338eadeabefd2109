"""Which part of a weight a tensor-parallel rank holds: said to DeepSpeed's converter, and cut out of whole weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_GATED = re.compile(r"\.linear_fc1\.(weight|bias)$")
"""Two projections in one weight, gate and up: a rank holds a part of each."""
_VOCABULARY = "is_embedding_or_output_parameter"
"""Marks weights whose rows are padded to what the layout divides."""


def universal_description(model: nn.Module) -> dict[str, Any]:
    """What `ds_to_universal` of DeepSpeed must know of the weights to put the parts of all ranks together."""
    kinds: dict[str, list[str]] = {
        "tp_replicated_parameter_patterns": [],
        "parameter_with_row_parallelism_patterns": [],
        "parameter_with_2_sub_params_cat_dim_0": [],
    }
    for name, parameter in model.named_parameters():
        pattern = f"{re.escape(name)}$"
        dimension = _dimension(parameter)
        if dimension is None:
            kinds["tp_replicated_parameter_patterns"].append(pattern)
        elif dimension == 1:
            kinds["parameter_with_row_parallelism_patterns"].append(pattern)
        elif _GATED.search(name):
            kinds["parameter_with_2_sub_params_cat_dim_0"].append(pattern)
    return {"universal_checkpoint_version": 0.2, **kinds}


def leave_out_empty_states(model: nn.Module) -> None:
    """Leave entries without a tensor out of the state of `model`: the converter takes every entry for a tensor.

    Megatron's linears have one each, for a precision that they are not computed in.
    """

    def leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        """Remove what is None."""
        for name in [name for name, value in state.items() if value is None]:
            del state[name]

    model.register_state_dict_post_hook(leave_out)


def own_part(name: str, parameter: nn.Parameter, whole: Tensor, rank: int, size: int) -> Tensor:
    """The part of `whole`, a weight or its optimizer state in any shape, that tensor-parallel rank `rank` holds.

    Rows of the vocabulary beyond those of `whole` are zero, as padding is.
    """
    shape, dimension = _shape(parameter), _dimension(parameter)
    if dimension is None:
        return whole.view(shape)
    whole = whole.reshape([-1 if axis == dimension else length for axis, length in enumerate(shape)])
    if getattr(parameter, _VOCABULARY, False):
        whole = _with_rows(whole, shape[0] * size)
    pieces = whole.chunk(2) if _GATED.search(name) else (whole,)
    part = torch.cat([piece.chunk(size, dimension)[rank] for piece in pieces])
    assert part.shape == shape, (name, part.shape, shape)
    return part.contiguous()


def _with_rows(whole: Tensor, rows: int) -> Tensor:
    padding = whole.new_zeros(max(0, rows - whole.shape[0]), *whole.shape[1:])
    return torch.cat([whole, padding])[:rows]


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Of this rank's part, also where ZeRO-3 has taken it apart."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _dimension(parameter: nn.Parameter) -> int | None:
    """Which dimension is cut over tensor-parallel ranks, whatever their number; None where every rank has all."""
    dimension: int = getattr(parameter, "partition_dim", -1)
    return None if dimension < 0 else dimension


@contextmanager
def whole_weights(model: nn.Module, gathered: Any, *, kept: bool) -> Iterator[None]:
    """Inside, the weights of ZeRO-3 have their shapes again; their numbers only on ranks that keep them (`kept`).

    They are gathered one after the other with `gathered` (`deepspeed.zero.GatheredParameters`) and kept on the host.
    Without ZeRO-3 nothing happens.
    """
    apart = [p for p in model.parameters() if hasattr(p, "ds_status") and p.ds_status.name != "AVAILABLE"]
    before = [parameter.data for parameter in apart]
    wholes = []
    for parameter in apart:
        with gathered([parameter]):
            here = parameter.data
            wholes.append(here.to("cpu", copy=True) if kept else here.new_empty(1).expand(here.shape))
    for parameter, whole in zip(apart, wholes, strict=True):
        parameter.data = whole
    try:
        yield
    finally:
        for parameter, data in zip(apart, before, strict=True):
            parameter.data = data
