"""Megatron's parallel state for every test of this room."""

from functools import cache

import pytest

from tests.layers.megatron import initialize
from tests.models.two_ranks import QUICK_CONTEXT, QUICK_TENSOR, Computed, TwoRanks, compute_on_rank
from tests.spawned_ranks import run_distributed


@pytest.fixture(autouse=True)
def parallel_state() -> None:
    """One process is a whole world."""
    initialize()


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    """What two ranks compute, when it is asked for first: the slow cases of the same tests do without."""

    @cache
    def compute() -> Computed:
        folder = str(tmp_path_factory.mktemp("two_ranks"))
        by_rank = run_distributed(compute_on_rank, 2, folder, timeout=200)
        trained, stages = zip(*by_rank, strict=True)
        by_case = [list(ranks) for ranks in zip(*trained, strict=True)]
        tensor = dict(zip(QUICK_TENSOR, by_case, strict=False))
        context = dict(zip(QUICK_CONTEXT, by_case[len(tensor) :], strict=True))
        return Computed(tensor, context, folder, list(stages))

    return compute
