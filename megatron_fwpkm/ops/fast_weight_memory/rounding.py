"""Stochastic rounding of float32 rows to bfloat16: unbiased, reproducible, the same bits in torch and in Triton.

A write moves a value by less than half a bfloat16 step most of the time, so rounding to the nearest would lose it. Here
a value between two neighbours goes to the upper one with the probability of its distance from the lower one: 16 random
bits are added to the bits that are cut off. They come from Philox4x32 with 7 rounds (Salmon et al. 2011, the fewest
that pass BigCrush), a function of (seed, number of the write, slot, column): it depends neither on how a text is cut
into calls, nor on which process holds a column, nor on a generator's state. `FastWeightState.rounding` holds what the
bits depend on.
"""

from __future__ import annotations

import torch
from torch import Tensor

PHILOX_ROUNDS = 7
"""Rounds of Philox; the kernels use the same."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_INFINITY, _NAN = 0x7F800000, 0x7FC0


def make_rounding(seed: int, first_column: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """What the rounding of a memory's writes depends on, before its first write.

    Args:
        seed: any whole number.
        first_column: the number of this process's first column in the whole table.
        device: where the tables live.

    Returns:
        [3] int64: the seed, the number of writes so far, and the first column.
    """
    return torch.tensor([seed % 2**63, 0, first_column], device=device)


def _multiply(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of a product of unsigned 32-bit numbers; int64 wraps around, which loses nothing."""
    product = x * multiplier
    return (product >> 32) & _MASK, product & _MASK


def philox(key: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32: four random 32-bit numbers for each counter.

    Args:
        key: int64 scalar; its lower and upper 32 bits are the two words of the key.
        counter: four tensors of int64 below 2^32, which broadcast.

    Returns:
        Four tensors of int64 below 2^32.
    """
    first, second, third, fourth = counter
    low, high = key & _MASK, (key >> 32) & _MASK
    for _ in range(PHILOX_ROUNDS):
        upper_a, lower_a = _multiply(first, _MULTIPLIERS[0])
        upper_b, lower_b = _multiply(third, _MULTIPLIERS[1])
        first, second, third, fourth = upper_b ^ second ^ low, lower_b, upper_a ^ fourth ^ high, lower_a
        low, high = (low + _KEY_STEPS[0]) & _MASK, (high + _KEY_STEPS[1]) & _MASK
    return first, second, third, fourth


def _random_bits(rounding: Tensor, write: int, slots: Tensor, num_columns: int) -> Tensor:
    """16 random bits for every value of rows [U, D], int32; four neighbouring columns share a counter."""
    seed, writes, first_column = rounding.unbind()
    columns = first_column + torch.arange(num_columns, device=slots.device)
    # One more group than D / 4, for columns that begin in the middle of one.
    groups = first_column // 4 + torch.arange(num_columns // 4 + 2, device=slots.device)
    number = writes + write
    words = philox(seed, (groups, slots.unsqueeze(1), number & _MASK, (number >> 32) & _MASK))
    flat = torch.stack(torch.broadcast_tensors(*words), -1).flatten(1)
    places = columns - first_column // 4 * 4
    return (flat.index_select(1, places) & 0xFFFF).to(torch.int32)


def round_rows(rows: Tensor, slots: Tensor, rounding: Tensor, write: int) -> Tensor:
    """Round rows of a table that are about to be written.

    Args:
        rows: [U, D] float32.
        slots: [U] int64, the slots they go to.
        rounding: [3] int64 of the memory, see `make_rounding`.
        write: number of this write within the call.

    Returns:
        [U, D] bfloat16. Values that bfloat16 holds exactly, infinities and NaN among them, stay what they are.
    """
    bits = rows.contiguous().view(torch.int32)
    rounded = (bits + _random_bits(rounding, write, slots, rows.shape[1])) >> 16
    rounded.masked_fill_((bits & 0x7FFFFFFF) > _INFINITY, _NAN)
    return rounded.to(torch.int16).view(torch.bfloat16)
