"""--manual-gc: when Python's garbage is collected."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from megatron_fwpkm.config import TrainingConfig
from megatron_fwpkm.training.garbage import GarbageCollection


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Generations that are collected, in order."""
    seen: list[int] = []

    def collect(generation: int = 2) -> int:
        seen.append(generation)
        return 0

    monkeypatch.setattr(gc, "collect", collect)
    yield seen
    assert gc.isenabled()


def run(garbage: GarbageCollection) -> list[bool]:
    """Six iterations, with an evaluation after the fourth; whether the automatic collection was on."""
    enabled = []
    with garbage:
        for iteration in range(1, 7):
            enabled.append(gc.isenabled())
            garbage.after_iteration(iteration)
            if iteration == 4:
                with garbage.around_evaluation():
                    enabled.append(gc.isenabled())
    return enabled


@pytest.mark.parametrize(
    ("training", "automatic", "expected"),
    [
        (TrainingConfig(), True, []),
        (TrainingConfig(manual_gc=True), False, [2, 2, 0]),
        (TrainingConfig(manual_gc=True, manual_gc_eval=False), False, [2]),
        (TrainingConfig(manual_gc=True, manual_gc_interval=3), False, [2, 2, 2, 0, 2]),
        (TrainingConfig(manual_gc=True, manual_gc_interval=2, manual_gc_eval=False), False, [2, 2, 2, 2]),
    ],
)
def test_collections(training: TrainingConfig, automatic: bool, expected: list[int], collections: list[int]) -> None:
    assert set(run(GarbageCollection(training))) == {automatic}
    assert collections == expected


def test_an_error_brings_the_automatic_collection_back() -> None:
    with pytest.raises(RuntimeError, match="inside"), GarbageCollection(TrainingConfig(manual_gc=True)):
        assert not gc.isenabled()
        raise RuntimeError("inside")
    assert gc.isenabled()


def test_what_was_off_before_stays_off() -> None:
    gc.disable()
    try:
        with GarbageCollection(TrainingConfig(manual_gc=True)):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
