"""Where there is a GPU, the tests of this folder run on it and belong to the GPU suite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests as those of a GPU."""
    for item in items:
        if torch.cuda.is_available() and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("gpu")
