"""The memory's kernels as the compile gate compiles them.

Of the sub-keys: the paper's shape, one with top 32, the longest lists, and short lists, of which a program takes
several tokens or sub-keys. Of the values: the paper's shape with either table, and one with several blocks of columns
and several passes over pairs. All kernels also in float64, as tests of gradients run them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...kernel_forms import KernelVariant, variant_of
from ...product_key.triton.select import address_form, select_form, slots_form
from . import key_kernels, reader_kernels, value_kernels
from .key_steps import KeyForms
from .plans import adjoint_plan_form, write_plan_form
from .value_steps import ValueForms

_INDICES = (
    *("SLOTS", "ORDER", "STARTS", "PAIR_SLOTS", "NAMES", "HEADS", "LENGTHS", "COUNTS", "PLACES", "SOURCES", "SINKS"),
    "ROUNDING",
)
_TYPES = {
    "INDICES": "*i32",
    "POSITIONS": "*i32",
    "SORT_KEYS": "*i16",
    "TICKETS": "*i32",
    "SORTED_KEYS": "*i16",
    **dict.fromkeys(_INDICES, "*i64"),
}


def _of_keys(
    topk: int, score: str, num_subkeys: int, half_dim: int, heads: int, dtype: torch.dtype = torch.float32
) -> tuple[KernelVariant, ...]:
    """All kernels of the sub-keys as they are launched for whole lists."""
    forms = KeyForms(topk, score, num_subkeys, num_subkeys, half_dim, 2 * heads)
    tiles, finish = reader_kernels.tile_kernel, reader_kernels.finish_kernel
    named = {
        "select": select_form(num_subkeys, half_dim, topk, score, dtype),
        "slots": slots_form(num_subkeys, topk, score, True),
        "address": address_form(num_subkeys, half_dim, topk, score, dtype, True),
        "reader mean": forms.reader_mean(FIND=True, LOSS=True),
        "reader mean of a gradient": forms.reader_mean(FIND=False, LOSS=False),
        "strength": forms.per_token(key_kernels.strength_kernel),
        "slope gradient": forms.per_token(key_kernels.slope_gradient_kernel),
        "move": forms.per_sub_key(tiles, ADDED=True, TOTALS=False, MEASURED=forms.measures, LAST=forms.adds_last),
        "first gradient": forms.per_sub_key(tiles, ADDED=False, TOTALS=False, MEASURED=False, LAST=forms.adds_last),
        "gradient": forms.per_sub_key(tiles, ADDED=True, TOTALS=True, MEASURED=False, LAST=forms.adds_last),
        "end of a move": forms.per_sub_key(finish, ADDED=True, TOTALS=False, MEASURED=True),
        "end of a gradient": forms.per_sub_key(finish, ADDED=True, TOTALS=True, MEASURED=False),
        "strength gradient": forms.per_row(key_kernels.strength_gradient_kernel, SLOPES=True),
        "strength gradient of a part": forms.per_row(key_kernels.strength_gradient_kernel, SLOPES=False),
        "token backward": forms.per_row(key_kernels.token_backward_kernel, MOVED=True),
        "token backward, unmoved": forms.per_row(key_kernels.token_backward_kernel, MOVED=False),
    }
    label = f"k={topk} n={num_subkeys} h={half_dim}"
    variants = tuple(variant_of(f"{name} {label}", form, _TYPES) for name, form in named.items())
    return tuple(map(_in_float64, variants)) if dtype == torch.float64 else variants


def _in_float64(variant: KernelVariant) -> KernelVariant:
    """The variant with float64 for float32. No training runs it, so that spilled registers are only recorded."""
    types = {name: "*fp64" if kind == "*fp32" else kind for name, kind in variant.signature.items()}
    return replace(variant, name=f"{variant.name} fp64", signature=types, moves_rows=False, may_spill=True)


def _of_values(name: str, kernel: Any, shape: tuple[int, int], table: str = "fp32", **flags: bool) -> KernelVariant:
    """A kernel of the values for a shape (columns, slots per row)."""
    # Gradients are float32 for a bfloat16 table.
    moves_table = table != "bf16" or "TABLE" in kernel.arg_names
    item_size = {"fp32": 4, "bf16": 2, "fp64": 8}[table] if moves_table else 4
    form = ValueForms(*shape, item_size).form(kernel, **flags)
    types = _TYPES | (dict.fromkeys(("TABLE", "LOG"), "*i16") if table == "bf16" else {})
    if table == "fp64":
        return _in_float64(variant_of(f"values, {name} D={shape[0]}", form, types))
    return variant_of(f"values, {name} {table} D={shape[0]}", form, types, moves_rows=True)


def _of_tables(shape: tuple[int, int], table: str = "fp32") -> tuple[KernelVariant, ...]:
    """Those kernels of the values that a bfloat16 table changes."""
    return (
        _of_values("read", value_kernels.read_rows_kernel, shape, table),
        _of_values("write", value_kernels.write_rows_kernel, shape, table, UPDATE=True, KEEP_LOG=True),
        _of_values("backward", value_kernels.backward_rows_kernel, shape, table, WRITTEN=True),
    )


def _of_float_table(shape: tuple[int, int], table: str = "fp32") -> tuple[KernelVariant, ...]:
    """All kernels of the values on a float32 or float64 table."""
    return (
        *_of_tables(shape, table),
        _of_values("log", value_kernels.write_rows_kernel, shape, table, UPDATE=False, KEEP_LOG=True),
        _of_values("backward of the last piece", value_kernels.backward_rows_kernel, shape, table, WRITTEN=False),
        _of_values("adjoint", value_kernels.adjoint_rows_kernel, shape, table),
    )


def _of_plans() -> tuple[KernelVariant, ...]:
    """The kernels of the plans; keys of the write plan have 32 bits where they fit."""
    sorted_keys, positions = {"ORDERED": "*i32"}, {"ORDER", "BY_SLOT", "SLOTS", "HEADS", "LENGTHS", "PLACES", "ROWS"}
    types = dict.fromkeys(positions | {"SOURCES", "SINKS"}, "*i64") | {"IS_HEAD": "*i1"}
    return (
        variant_of("write plan", write_plan_form(), types | sorted_keys),
        variant_of("write plan, wide keys", write_plan_form(), types | {"ORDERED": "*i64"}),
        variant_of("adjoint plan", adjoint_plan_form(False), types | sorted_keys),
        variant_of("adjoint plan, a row for every slot", adjoint_plan_form(True), types | sorted_keys),
    )


def _slow(variants: tuple[KernelVariant, ...]) -> tuple[KernelVariant, ...]:
    """Those that only `make test-all` compiles."""
    return tuple(replace(variant, slow=True) for variant in variants)


KERNEL_VARIANTS = (
    *_of_plans(),
    *_of_keys(8, "idw", 512, 256, heads=1),
    *_of_keys(32, "idw", 1024, 128, heads=4),
    *_slow(_of_keys(8, "idw", 4096, 256, heads=1)[:3:2]),
    *_slow(_of_keys(32, "idw", 4096, 128, heads=1)[:3:2]),
    *_slow(_of_keys(4, "dot_product", 64, 16, heads=2)),
    *_slow(_of_keys(4, "dot_product", 64, 32, heads=2)),
    *_of_float_table((512, 8)),
    *_of_tables((512, 8), "bf16"),
    *_of_float_table((768, 32)),
    *_slow(_of_keys(8, "idw", 512, 256, heads=1, dtype=torch.float64)),
    *_slow(_of_float_table((512, 8), "fp64")[1:]),
    # Quick: one kernel says that float64 compiles at all.
    *_of_float_table((512, 8), "fp64")[:1],
)
