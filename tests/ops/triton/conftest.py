"""The tests of this folder run on either device; with TEST_DEVICE=cuda they belong to the GPU suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ops.triton.harness import DEVICE


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests as those of a GPU where they run on one."""
    for item in items:
        if DEVICE == "cuda" and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("gpu")
