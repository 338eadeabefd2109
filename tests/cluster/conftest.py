"""Nodes for the tests of this folder, which are skipped with the reason where there can be none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from tests.cluster.namespaces import Node, cluster, why_not

_why_not = cache(why_not)


@pytest.fixture
def start_nodes(tmp_path: Path) -> Iterator[Callable[[int], list[Node]]]:
    """start_nodes(3): that many nodes, node-a and so on; nothing of them is left after the test, however it ends."""
    if reason := _why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        yield lambda count: stack.enter_context(cluster(count, tmp_path))
