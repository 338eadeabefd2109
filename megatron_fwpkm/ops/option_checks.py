"""What the options of all memories share: how they are copied from a configuration, and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from .chunk_pieces import StreamNumbers

Options = TypeVar("Options")


def options_by_name(cls: type[Options], config: Any, prefix: str, **given: Any) -> Options:
    """The options of a configuration, copied by name.

    Args:
        cls: the dataclass of the options.
        config: has an attribute for every option that it sets; the others keep their defaults.
        prefix: what its names begin with.
        given: options that go before the configuration's.
    """
    names = (field.name for field in fields(cls) if hasattr(config, prefix + field.name))  # type: ignore[arg-type]
    return cls(**{name: getattr(config, prefix + name) for name in names} | given)


def check_option_ranges(
    options: Any,
    whole_numbers: Mapping[str, int],
    step_sizes: Mapping[str, float],
    choices: Mapping[str, tuple[str, ...]],
) -> None:
    """Check every option alone.

    Args:
        options: has an attribute for every name.
        whole_numbers: options that are integers, and the smallest each may be.
        step_sizes: options that are numbers from 0, and the largest each may be.
        choices: options that are words, and the words each may be.

    Raises:
        ValueError: an option is out of its range.
    """
    for name, smallest in whole_numbers.items():
        value = getattr(options, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            raise ValueError(f"{name}={value!r} must be an integer >= {smallest}")
    for name, largest in step_sizes.items():
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= largest:
            raise ValueError(f"{name}={value!r} must be a finite number >= 0 (0 disables it) and <= {largest}")
    for name, valid in choices.items():
        if getattr(options, name) not in valid:
            raise ValueError(f"{name}={getattr(options, name)!r} is not known; choose one of: {', '.join(valid)}")


def check_stream_numbers(options: StreamNumbers) -> None:
    """Check that chunks, lookahead, boundary and arithmetic go together.

    Raises:
        ValueError: they do not.
    """
    if options.write_scale == "official" and options.boundary == "drop":
        raise ValueError(
            "write_scale='official' reproduces the authors' streaming and requires boundary='carry'; "
            "with boundary='drop' use write_scale='consistent'"
        )
    writes_nothing = options.boundary == "drop" or options.write_scale == "official"
    if writes_nothing and options.lookahead >= options.chunk_size:
        raise ValueError(
            f"lookahead={options.lookahead} leaves no tokens to write in a chunk of chunk_size={options.chunk_size}: "
            f"raise chunk_size above {options.lookahead}, or use boundary='carry' with write_scale='consistent'"
        )
