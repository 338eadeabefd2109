"""Sizes of a call of the memory, grids of them, and the flags that choose."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; `table_dtype` is torch's name of the values' type, `undo_log` what backward is kept for it."""

    batch: int
    tokens: int
    heads: int
    topk: int
    num_subkeys: int
    key_dim: int
    value_dim: int
    chunk_size: int
    table_dtype: str = "float32"
    undo_log: str = "fp32"

    def describe(self, base: Shape | None = None) -> str:
        """All sizes in words, or those that differ from `base` (`base` itself is called so)."""
        different = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if base is None or getattr(self, field.name) != getattr(base, field.name)
        ]
        return " ".join(different) or "base"


def around(base: Shape, *changes: tuple[str, Iterable[Any]]) -> tuple[Shape, ...]:
    """`base`, then every change of one size from it."""
    return (base, *(replace(base, **{name: value}) for name, values in changes for value in values))


PAPER = Shape(1, 4096, 1, 8, 512, 512, 512, 512)
GRIDS: dict[str, tuple[Shape, ...]] = {
    "paper": (PAPER,),
    "small": (Shape(8, 256, 1, 8, 128, 64, 64, 64),),
    "cpu": around(
        Shape(1, 1024, 1, 8, 256, 128, 128, 256),
        ("batch", [4]), ("tokens", [4096]), ("chunk_size", [64]), ("topk", [32]), ("num_subkeys", [512]),
        ("value_dim", [512]), ("heads", [4]), ("table_dtype", ["bfloat16"]),
        ("undo_log", ["bf16", "recompute"]),
    ),
    "gpu": around(
        Shape(8, 4096, 1, 8, 512, 512, 512, 512),
        ("batch", [1]), ("tokens", [512, 16384]), ("chunk_size", [128, 2048]), ("topk", [1, 32]),
        ("num_subkeys", [128, 1024]), ("value_dim", [128, 1024]), ("heads", [4]), ("table_dtype", ["bfloat16"]),
        ("undo_log", ["bf16", "recompute"]),
    ),
    "rehearsal": (Shape(2, 48, 1, 4, 16, 16, 16, 16),),
}  # fmt: skip
"""`paper`: one sequence of the paper's training. `small`: one layer of the quickstart. `cpu`, `gpu`: one size at a time
changed from the first. `rehearsal`: to see that everything runs."""


CHOICES = {"table_dtype": ["float32", "bfloat16"], "undo_log": ["fp32", "bf16", "recompute"]}
"""Values of what is no size."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--grid`, and a flag per size that replaces the grid by all combinations of the given values."""
    parser.add_argument("--grid", choices=list(GRIDS), help="named shapes (default: cpu or gpu, as the device is)")
    sizes = parser.add_argument_group(
        "sizes", "one or more values each: all combinations are measured, the other sizes as in the grid's first shape"
    )
    for field in fields(Shape):
        flag, choices = f"--{field.name.replace('_', '-')}", CHOICES.get(field.name)
        kind = str if choices else int
        sizes.add_argument(flag, nargs="+", type=kind, choices=choices, metavar=None if choices else "N")


def chosen(arguments: argparse.Namespace, default_grid: str) -> tuple[str, tuple[Shape, ...]]:
    """(name, shapes) as the parsed flags say."""
    name = arguments.grid or default_grid
    base = GRIDS[name][0]
    given = {field.name: values for field in fields(Shape) if (values := getattr(arguments, field.name)) is not None}
    if not given:
        return name, GRIDS[name]
    combinations = (dict(zip(given, values, strict=True)) for values in product(*given.values()))
    return "_".join([name, *given]), tuple(replace(base, **values) for values in combinations)
