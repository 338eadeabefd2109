"""Megatron's parallel state for every test of this room."""

import pytest

from tests.layers.megatron import initialize


@pytest.fixture(autouse=True)
def parallel_state() -> None:
    """One process is a whole world."""
    initialize()
