"""What `help()` says of the public functions: every argument in one place, which the others name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from megatron_fwpkm.ops import (
    FastMLPOptions,
    MemoryOptions,
    fast_weight_memory,
    fast_weight_memory_,
    fast_weight_mlp,
    flush_pending,
    flush_pending_,
    flush_pending_mlp,
)

REFERS_TO: dict[Callable[..., Any], Callable[..., Any] | None] = {
    fast_weight_memory: None,
    fast_weight_memory_: fast_weight_memory,
    flush_pending: fast_weight_memory,
    flush_pending_: flush_pending,
    fast_weight_mlp: None,
    flush_pending_mlp: fast_weight_mlp,
}


def described(function: Callable[..., Any]) -> set[str]:
    """Arguments in the docstring's list, and in those it refers to."""
    text = inspect.getdoc(function) or ""
    names = set(re.findall(r"^    (\w+): ", text.partition("Args:\n")[2].partition("\n\n")[0], re.MULTILINE))
    other = REFERS_TO[function]
    if other is None:
        return names
    assert f"not named here are those of `{other.__name__}`" in " ".join(text.split())
    return names | described(other)


@pytest.mark.parametrize("function", REFERS_TO)
def test_every_argument_is_described(function: Callable[..., Any]) -> None:
    assert set(inspect.signature(function).parameters) <= described(function)


def test_the_first_one_describes_no_others() -> None:
    assert set(inspect.signature(fast_weight_memory).parameters) == described(fast_weight_memory)


@pytest.mark.parametrize("options", [MemoryOptions, FastMLPOptions])
def test_every_option_is_described_where_it_is_defined(options: type) -> None:
    text = inspect.getdoc(options) or ""
    names = re.findall(r"^    (\w+): ", text.partition("Attributes:\n")[2].partition("\n\n")[0], re.MULTILINE)
    assert names == [field.name for field in fields(options)]
