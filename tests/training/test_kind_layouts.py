"""Every kind of layer in every layout computes what it computes in one process, in float64 to 1e-10."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from megatron_fwpkm.config.layer_kinds import LAYER_KINDS
from tests.engines.test_engine import change
from tests.spawned_ranks import run_distributed
from tests.training.kind_layouts import (
    COLUMNS,
    DOCUMENT,
    GROUPS,
    KINDS,
    LAYOUTS,
    QUICK,
    refusals,
    with_table,
)
from tests.training.trained_layouts import (
    STEPS,
    Layout,
    check_curves,
    check_tables,
    check_weights,
    numbers,
    whole_table,
)

pytestmark = pytest.mark.layouts

TOLERANCE = 1e-10
QUICK_KINDS = ("all of them",)
"""The row of every run of the tests, which has a layer of every kind; the others are slow."""


def is_quick(kind: str, layout: Layout) -> bool:
    """Whether the cell is one of every run of the tests."""
    return kind in QUICK_KINDS and layout.name == QUICK


CELLS = [
    pytest.param(kind, layout, marks=() if is_quick(kind, layout) else pytest.mark.slow, id=f"{kind}-{layout.name}")
    for layout in COLUMNS
    for kind in KINDS
]


def train(kind: str, layout: Layout) -> dict[str, Any]:
    """A cell, in the running processes."""
    return numbers(layout.of(KINDS[kind].config, layout.reset), layout, double=True)


def train_kinds(rank: int, world_size: int, layout: str, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Cells of a column, one kind after the other in the same processes."""
    return [train(kind, LAYOUTS[layout]) for kind in kinds]


@cache
def column(layout: str, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """By kind what the ranks of a layout computed, for the quick cells or for the others."""
    processes = LAYOUTS[layout].processes
    kinds = [kind for kind in KINDS if is_quick(kind, LAYOUTS[layout]) == quick]
    if processes == 1:
        return {kind: [train(kind, LAYOUTS[layout])] for kind in kinds}
    by_rank = run_distributed(train_kinds, processes, layout, kinds, timeout=400)
    return dict(zip(kinds, (list(ranks) for ranks in zip(*by_rank, strict=True)), strict=True))


@cache
def serial(kind: str, reset: str, packed: bool) -> dict[str, Any]:
    """One process, without recompute and offload."""
    layout = Layout("serial", 1, packed=packed)
    return numbers(layout.of(KINDS[kind].config, reset), layout, double=True)


@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.parametrize(("kind", "layout"), CELLS)
def test_kind_equals_serial(kind: str, layout: Layout) -> None:
    ranks = column(layout.name, is_quick(kind, layout))[kind]
    expected = serial(kind, layout.reset, layout.packed)
    where = f"{kind} with {layout.name}"
    check_curves(where, ranks, expected, TOLERANCE, norms=STEPS)
    check_weights(where, ranks, expected, TOLERANCE)
    assert {key for rank in ranks for key in rank["tables"]} == set(expected["tables"]), where
    if layout.replicas == 1:  # with others every one has a memory of its own
        check_tables(where, ranks, expected, TOLERANCE)


def train_with_owners(rank: int, world_size: int, layout: Layout) -> dict[str, Any]:
    """Both kinds of fast weights, which every sequence owns."""
    config = layout.of(KINDS["all of them"].config, "step")
    for memory in ("fwpkm", "fwmlp"):
        config = change(config, memory, owner="sequence")
    return numbers(config, layout, double=True)


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.parametrize("name", ["PP2 interleaved", "DP2 ZeRO-1", "CP2", "TP2 SP", "PP2 packed recompute"])
def test_memories_of_sequences_equal_serial(name: str) -> None:
    """Replicas, too, for a sequence does not read what others wrote."""
    layout = LAYOUTS[name]
    expected = train_with_owners(0, 1, Layout("serial", 1, packed=layout.packed))
    ranks = run_distributed(train_with_owners, 2, layout, timeout=200)
    check_curves(name, ranks, expected, TOLERANCE, norms=STEPS)
    check_weights(name, ranks, expected, TOLERANCE)
    check_tables(name, ranks, expected, TOLERANCE)


def test_every_kind_has_a_row() -> None:
    alone = set().union(*(row.kinds for row in KINDS.values() if len(row.kinds) == 1))
    assert alone == LAYER_KINDS.keys() - {"swiglu"}, "swiglu is the MLP of all rows"


def test_the_table_in_the_document_is_fresh() -> None:
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == with_table(written), f"{DOCUMENT} is stale: run `python -m tests.training.kind_layouts`"
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(LAYOUTS)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("fa", ["--num-attention-heads 4 .*--num-query-groups 4 "]),
        ("swa", ["--num-attention-heads 4 .*--num-query-groups 4 "]),
        (
            "gdn",
            ["--linear-num-key-heads 4 .*value-heads 8 ", "--linear-num-key-heads 4 is not divisible"],
        ),
        ("pkm", ["--pkm-value-dim 8 "]),
        (
            "fwpkm",
            ["--fwpkm-num-subkeys 4 .*--fwpkm-value-dim 8 ", "--fwpkm-num-subkeys 4 .*--context"],
        ),
        ("fwmlp", ["--fwmlp-hidden-size 8 ", "--fwmlp-hidden-size 8 .*--context"]),
    ],
)
def test_what_a_kind_cannot_divide_is_refused(kind: str, sizes: list[str]) -> None:
    found = refusals(KINDS[kind])
    assert found[-1].startswith("--cpu-offloading-num-layers 4 has nothing to offload")
    for size in sizes:
        assert any(re.search(size, line) for line in found), found
    assert all("data" not in line for line in found)


# Of a product key memory a near tie may choose another slot, and then the norms are apart by per cents.
WITHOUT_CHOICES_OF_FAST_WEIGHTS = ("fa", "swa", "gdn", "pkm", "fwmlp")


def train_in_bf16(rank: int, world_size: int, layout: Layout) -> dict[str, dict[str, Any]]:
    """A step of every kind that bfloat16 leaves close to itself, and of a memory that does not."""
    kinds = [*WITHOUT_CHOICES_OF_FAST_WEIGHTS, "fwpkm"]
    configs = {kind: change(layout.of(KINDS[kind].config, "never"), "training", bf16=True) for kind in kinds}
    return {kind: numbers(config, layout, double=False, steps=1) for kind, config in configs.items()}


@pytest.mark.slow
def test_bf16_rounds_alike() -> None:
    """Tensor-parallel ranks round as one process does, before steps blow it up; memories sum in float32.

    What a memory of the first layer is given does not depend on the layout, so its fast weights show its own sums.
    """
    alone = train_in_bf16(0, 1, Layout("serial", 1))
    ranks = run_distributed(train_in_bf16, 2, LAYOUTS["TP2 SP"], timeout=200)
    for kind in WITHOUT_CHOICES_OF_FAST_WEIGHTS:
        check_curves(f"{kind} in bf16", [rank[kind] for rank in ranks], alone[kind], tolerance=3e-3, norms=1)
    for kind in ("fwmlp", "fwpkm"):
        first = {key: table for key, (*_, table) in alone[kind]["tables"].items() if key[0] == 1}
        assert first
        for key, expected in first.items():
            apart = (whole_table(key, [rank[kind] for rank in ranks]) - expected).abs().max()
            assert apart <= 1e-6 * expected.abs().max(), (kind, key, apart)
