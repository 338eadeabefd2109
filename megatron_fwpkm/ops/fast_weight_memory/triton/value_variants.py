"""The kernels of the values table as the compile gate compiles them."""

from __future__ import annotations

from ...kernel_forms import KernelForm, KernelVariant, variant_of
from .value_forms import ValueForms

_INDICES = (
    *("PAIR_SLOTS", "SLOTS", "NAMES", "HEADS", "LENGTHS", "COUNTS", "ORDER", "PLACES", "SOURCES", "SINKS"),
    "ROUNDING",
)


def _variant(name: str, form: KernelForm, table: str = "fp32") -> KernelVariant:
    rows = {"fp32": "*fp32", "bf16": "*i16"}[table]
    types = {"TABLE": rows, "LOG": rows, **dict.fromkeys(_INDICES, "*i64")}
    return variant_of(f"values, {name} {table} D={form.constants['D']}", form, types, moves_rows=True)


def _variants(columns: int, width: int) -> tuple[KernelVariant, ...]:
    """All kernels for `width` slots per row."""
    forms = ValueForms(columns, width)
    return (
        *_variants_of_tables(columns, width, "fp32"),
        _variant("log", forms.write(update=False, keep_log=True)),
        _variant("backward of the last piece", forms.backward(written=False)),
        _variant("adjoint", forms.adjoint()),
        _variant("end of adjoint", forms.finish_adjoint()),
    )


def _variants_of_tables(columns: int, width: int, table: str) -> tuple[KernelVariant, ...]:
    """Those that a bfloat16 table changes."""
    forms = ValueForms(columns, width, 2 if table == "bf16" else 4)
    return (
        _variant("read", forms.read(), table),
        _variant("write", forms.write(update=True, keep_log=True), table),
        _variant("end of write", forms.finish_write(), table),
        # Gradients are float32 for either table.
        _variant("backward", ValueForms(columns, width).backward(written=True), table),
    )


KERNEL_VARIANTS = (*_variants(512, 8), *_variants_of_tables(512, 8, "bf16"), *_variants(768, 32))
"""The paper's shape with either table, and one with several blocks of columns and several passes over pairs."""
