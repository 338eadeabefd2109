"""A tensor-parallel rank's part of a whole weight, by how the weight is cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from megatron_fwpkm.engines.deepspeed_shards import own_part

WHOLE = torch.arange(24.0).view(8, 3)


def parameter(rows: int, columns: int, dimension: int, **marks: bool) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(rows, columns))
    made.partition_dim = dimension  # type: ignore[attr-defined]
    for name, value in marks.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("flat", [False, True])
def test_rows_and_columns_are_cut(flat: bool) -> None:
    whole = WHOLE.flatten() if flat else WHOLE
    assert torch.equal(own_part("x.weight", parameter(4, 3, 0), whole, 1, 2), WHOLE[4:])
    assert torch.equal(own_part("x.weight", parameter(8, 1, 1), whole, 2, 3), WHOLE[:, 2:])
    assert torch.equal(own_part("x.weight", parameter(8, 3, -1), whole, 1, 2), WHOLE)


def test_of_gate_and_up_a_rank_has_a_part_of_each() -> None:
    part = own_part("decoder.layers.0.mlp.linear_fc1.weight", parameter(4, 3, 0), WHOLE, 1, 2)
    assert torch.equal(part, torch.cat([WHOLE[2:4], WHOLE[6:8]]))


@pytest.mark.parametrize("rows", [3, 5])
def test_a_vocabulary_is_padded_for_the_layout(rows: int) -> None:
    marked = parameter(rows, 3, 0, is_embedding_or_output_parameter=True)
    found = torch.cat([own_part("embedding.weight", marked, WHOLE, rank, 2) for rank in range(2)])
    assert torch.equal(found[:8], WHOLE[: 2 * rows]) and not found[8:].any()
