"""Memories before any write (DESIGN section 2).

Of a product key memory the sub-keys are U(+-key_dim^-1/2) and the values N(0, value_dim^-1/2); of a fast-weight MLP the
weights of a projection with n inputs are N(0, n^-1/2) and its biases 0.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from .fast_weight_mlp.mlp_state import FastMLPWeights

_ROWS_AT_ONCE = 8192


def derived_seed(seed: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) that is a fixed function of `seed` and `names`, the same on every machine."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sub_key_bound(key_dim: int) -> float:
    """Largest magnitude of an initial sub-key's entries, which are uniform."""
    return float(key_dim**-0.5)


def value_deviation(value_dim: int) -> float:
    """Standard deviation of the initial values, which are normal."""
    return float(value_dim**-0.5)


def initial_sub_keys(sizes: Any, seed: int, layer_number: int, rows: slice = slice(None)) -> Tensor:
    """Rows of the sub-keys before any write, a fixed function of (seed, layer).

    All of them are drawn and cut, so that every tensor-parallel size has the same ones. A configuration of a memory has
    the `sizes`: `num_heads`, `num_subkeys` and `key_dim`.

    Returns:
        [heads, 2, number of rows, key_dim / 2] float32 on the CPU.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "sub_keys", layer_number))
    sub_keys = torch.empty(sizes.num_heads, 2, sizes.num_subkeys, sizes.key_dim // 2)
    bound = sub_key_bound(sizes.key_dim)
    return sub_keys.uniform_(-bound, bound, generator=generator)[:, :, rows].clone()


def initial_values(sizes: Any, seed: int, layer_number: int, columns: slice = slice(None)) -> Tensor:
    """Columns of the values table before any write, a fixed function of (seed, layer).

    The whole table is drawn and cut, so that every tensor-parallel size has the same one; only a few rows of it exist
    at a time. A configuration of a memory has the `sizes`: `num_subkeys`, `value_dim` and `table_dtype`.

    Returns:
        [num_slots, number of columns] in the table's dtype on the CPU.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "values", layer_number))
    num_slots = sizes.num_subkeys**2
    width = len(range(sizes.value_dim)[columns])
    values = torch.empty(num_slots, width, dtype=torch.bfloat16 if sizes.table_dtype == "bf16" else torch.float32)
    draw_columns(values, sizes.value_dim, columns, value_deviation(sizes.value_dim), generator)
    return values


def draw_columns(table: Tensor, width: int, columns: slice, deviation: float, generator: torch.Generator) -> None:
    """Fill a table with normal numbers: `columns` of one of `width` columns that is drawn whole, rows after rows."""
    rows = torch.empty(min(_ROWS_AT_ONCE, len(table)), width)
    for start in range(0, len(table), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(table))
        rows.normal_(0.0, deviation, generator=generator)
        table[start:stop] = rows[: stop - start, columns]


def initial_mlp_weights(sizes: Any, seed: int, layer_number: int, hidden: slice = slice(None)) -> FastMLPWeights:
    """The fast-weight MLP before any write, a fixed function of (seed, layer).

    All of it is drawn and cut, so that every layout has the same. A configuration has the `sizes`: `key_dim`,
    `hidden_size` and `value_dim`.

    Returns:
        The part of the `hidden` width, float32 on the CPU; the output bias is whole.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "fast_mlp", layer_number))

    def drawn(outputs: int, inputs: int) -> Tensor:
        """The weight of a projection."""
        return torch.empty(outputs, inputs).normal_(0.0, mlp_deviation(inputs), generator=generator)

    keys, width, values = sizes.key_dim, sizes.hidden_size, sizes.value_dim
    gate, up, down = drawn(width, keys), drawn(width, keys), drawn(values, width)
    bias = torch.zeros(len(range(width)[hidden]))
    own = gate[hidden].clone(), bias, up[hidden].clone(), bias.clone(), down[:, hidden].clone()
    return FastMLPWeights(*own, torch.zeros(values))


def mlp_deviation(inputs: int) -> float:
    """Standard deviation of the initial weights of a fast projection with so many inputs."""
    return float(inputs**-0.5)
