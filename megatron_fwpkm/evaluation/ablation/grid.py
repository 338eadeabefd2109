"""What an ablation trains: every combination of one choice per axis, with every seed. Free of torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_KEYS = ("base", "seeds", "axes", "reference", "cpu-seconds")


@dataclass(frozen=True)
class Trial:
    """One model of the grid."""

    choices: tuple[str, ...]
    """The name of the choice on every axis."""
    seed: int
    flags: Mapping[str, Any]
    """Flags of pretrain.py, without dashes, that the choices add to the base."""

    @property
    def name(self) -> str:
        """A folder's name."""
        return "_".join((*self.choices, f"seed{self.seed}"))


@dataclass(frozen=True)
class Grid:
    """A grid, as its YAML file says it."""

    base: Path
    """Configuration of pretrain.py that all trials share."""
    seeds: tuple[int, ...]
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """By axis and choice: flags of pretrain.py."""
    reference: str
    """The choice on the first axis that the others are compared with."""
    cpu_seconds: float | None = None
    """Every trial trains as many iterations as take so long by its own speed; None for those of the base."""

    @property
    def first_axis(self) -> str:
        """Its choices are compared with each other."""
        return next(iter(self.axes))

    def trials(self) -> Iterator[Trial]:
        """All of them; a seed is whole before the next one begins, so that a budget that ends leaves whole seeds."""
        for seed in self.seeds:
            for chosen in itertools.product(*(choices.items() for choices in self.axes.values())):
                flags: dict[str, Any] = {}
                for _, more in chosen:
                    flags |= more
                yield Trial(tuple(name for name, _ in chosen), seed, flags)


def read_grid(path: Path) -> Grid:
    """Read a grid; its base stands beside it unless its path is absolute.

    Raises:
        ValueError: the file is missing, is not a grid, or two choices of a combination set the same flag.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--grid {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--grid {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--grid {path} must contain the keys {', '.join(_KEYS[:4])}")
    if unknown := sorted(map(str, set(content) - set(_KEYS))):
        raise ValueError(f"--grid {path} has the unknown key {unknown[0]}; the keys are {', '.join(_KEYS)}")
    if missing := [key for key in _KEYS[:4] if key not in content]:
        raise ValueError(f"--grid {path} lacks the key {missing[0]}")
    base = path.parent / str(content["base"])
    if not base.is_file():
        raise ValueError(f"--grid {path}: base {base} does not exist or is not a file")
    axes = _axes(path, content["axes"])
    first = next(iter(axes.values()))
    if content["reference"] not in first:
        raise ValueError(f"--grid {path}: reference {content['reference']!r} is not a choice: {', '.join(first)}")
    return Grid(base, _seeds(path, content["seeds"]), axes, content["reference"], _seconds(path, content))


def _seconds(path: Path, content: Mapping[str, Any]) -> float | None:
    value = content.get("cpu-seconds")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"--grid {path}: cpu-seconds {value!r} must be a number above 0")
    return float(value)


def _seeds(path: Path, value: Any) -> tuple[int, ...]:
    found = value if isinstance(value, list) else []
    if not found or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in found):
        raise ValueError(f"--grid {path}: seeds {value!r} must be a list of integers, such as [1, 2, 3]")
    if len(set(found)) != len(found):
        raise ValueError(f"--grid {path}: seeds {value!r} contains the same seed twice")
    return tuple(found)


def _axes(path: Path, value: Any) -> dict[str, dict[str, dict[str, Any]]]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"--grid {path}: axes must contain at least one axis")
    axes: dict[str, dict[str, dict[str, Any]]] = {}
    owner: dict[str, str] = {}
    for axis, choices in value.items():
        if not isinstance(choices, dict) or not choices:
            raise ValueError(f"--grid {path}: the axis {axis} must contain at least one choice")
        axes[str(axis)] = {}
        for name, flags in choices.items():
            if not _NAME.fullmatch(str(name)):
                raise ValueError(f"--grid {path}: the choice {name!r} must consist of letters, digits and . _ + -")
            if not isinstance(flags, dict | None):
                raise ValueError(f"--grid {path}: the choice {name} must contain flags of pretrain.py, or {{}}")
            axes[str(axis)][str(name)] = dict(flags or {})
            for flag in flags or {}:
                if owner.setdefault(str(flag), str(axis)) != str(axis):
                    raise ValueError(f"--grid {path}: the axes {owner[flag]} and {axis} both set {flag}")
    return axes


def command_words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as words of a command line."""
    words: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return words
