"""--layer-pattern: which token mixer every layer has, and within which window it sees.

A pattern such as `swa:3,swa*2,fa` names the token mixers of some layers, in order, and is repeated until every layer of
the model has one. `*N` stands for N layers alike; `:LEFT` is a window of that part alone, in the place of
--window-size.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from .layer_kind import LAYER_KINDS, LayerKind, Role
from .model import ModelConfig
from .neighbours import near_divisors, near_multiples

_PART = re.compile(r"(?P<mixer>[A-Za-z_][A-Za-z0-9_-]*)(?::(?P<window>\d{1,18}))?(?:\*(?P<count>\d{1,18}))?")
_MOST_WINDOW = 2**31 - 1
_MOST_LAYERS = 10_000
_FORM = "a part is NAME, NAME*COUNT or NAME:WINDOW*COUNT, and commas stand between parts, as in fa*3,swa"


class PatternPart(NamedTuple):
    """Some layers alike, one after the other.

    Attributes:
        mixer: the name of their token mixer.
        window: the tokens that it sees before a token, where the part says so itself.
        layers: how many layers.
    """

    mixer: str
    window: int | None
    layers: int


@lru_cache(maxsize=32)
def read_pattern(text: str) -> tuple[PatternPart, ...]:
    """The parts of a pattern, whether or not there are such token mixers.

    Raises:
        ValueError: it is not spelled like a pattern; without the flag's name.
    """
    parts = []
    for word in text.split(","):
        found = _PART.fullmatch(word.strip())
        if found is None:
            raise ValueError(f"{word.strip()!r} is no part of a pattern: {_FORM}")
        mixer, window, count = found["mixer"], found["window"], int(found["count"] or 1)
        if not 1 <= count <= _MOST_LAYERS:
            raise ValueError(f"the count of {word.strip()} must be between 1 and {_MOST_LAYERS:,}")
        parts.append(PatternPart(mixer, None if window is None else int(window), count))
    return tuple(parts)


def layer_mixers(model: ModelConfig) -> tuple[str, ...]:
    """The name of every layer's token mixer; --layer-pattern must be valid."""
    return _mixers(model.layer_pattern, model.num_layers)


@lru_cache(maxsize=8)
def _mixers(pattern: str, num_layers: int) -> tuple[str, ...]:
    return tuple(part.mixer for part in _repeated(pattern, num_layers))


def layer_windows(model: ModelConfig) -> tuple[int | None, ...]:
    """Per layer the number of tokens that its mixer sees before a token, None for all; the options must be valid."""
    return tuple(_window(part, model) for part in _repeated(model.layer_pattern, model.num_layers))


def layer_window(model: ModelConfig, layer_number: int) -> int | None:
    """That of one layer (number from 1), at the cost of the pattern and not of the model."""
    parts = read_pattern(model.layer_pattern)
    place = (layer_number - 1) % sum(part.layers for part in parts)
    ends = accumulate(part.layers for part in parts)
    return _window(next(part for part, end in zip(parts, ends, strict=True) if place < end), model)


def _window(part: PatternPart, model: ModelConfig) -> int | None:
    if not LAYER_KINDS[part.mixer].within_window:
        return None
    if part.window is None and model.window_size is not None:
        return model.window_size[0]
    return part.window


def _repeated(text: str, num_layers: int) -> list[PatternPart]:
    """The part of every layer."""
    pattern = [part for part in read_pattern(text) for _ in range(part.layers)]
    return pattern * (num_layers // len(pattern))


def pattern_problems(model: ModelConfig) -> Iterator[str]:
    """What is wrong with --layer-pattern by itself, in sentences."""
    try:
        parts = read_pattern(model.layer_pattern)
    except ValueError as error:
        yield f"--layer-pattern {model.layer_pattern}: {error}"
        return
    known = {kind.name: kind for kind in LAYER_KINDS.values() if kind.role is Role.MIXER}
    for name in dict.fromkeys(part.mixer for part in parts):
        if name not in known:
            yield f"--layer-pattern {model.layer_pattern}: {name} is not a token mixer{_advice(name, known)}"
    length = sum(part.layers for part in parts)
    if model.num_layers % length:
        yield (
            f"--layer-pattern {model.layer_pattern} describes {length} layers, and repeating it does not give "
            f"--num-layers {model.num_layers}: use --num-layers {near_multiples(model.num_layers, length)}, or a "
            f"pattern of {near_divisors(length, model.num_layers)} layers"
        )


def _advice(name: str, known: dict[str, LayerKind]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    return f"{meant} choose from: {', '.join(f'{kind.name} ({kind.label})' for kind in known.values())}"


def window_problems(model: ModelConfig, used_elsewhere: bool) -> Iterator[str]:
    """What is wrong with --window-size, and with windows where --layer-pattern is valid, in sentences.

    `used_elsewhere` says whether --window-size has an effect without a layer that sees a window.
    """
    parts = dict.fromkeys(part._replace(layers=1) for part in read_pattern(model.layer_pattern))
    if model.window_size is not None:
        yield from _window_size_problems(model.window_size)
    without = []
    for part in parts:
        kind = LAYER_KINDS[part.mixer]
        if part.window is not None and not kind.within_window:
            yield (
                f"--layer-pattern {model.layer_pattern}: {part.mixer} ({kind.label}) takes no window: remove "
                f":{part.window}"
            )
        elif part.window is not None and part.window > _MOST_WINDOW:
            yield f"--layer-pattern {model.layer_pattern}: a window must be at most {_MOST_WINDOW}"
        elif part.window is None and kind.within_window:
            without.append(part.mixer)
    if without and model.window_size is None:
        yield (
            f"--layer-pattern {model.layer_pattern} has {without[0]}, which needs a window: give --window-size LEFT,0, "
            "as in 511,0 (a token and the 511 before it)"
        )
    if not without and model.window_size is not None and not used_elsewhere:
        windowed = [kind.name for kind in LAYER_KINDS.values() if kind.within_window]
        yield (
            f"--window-size {model.window_size[0]},{model.window_size[1]} has no effect, because no part of "
            f"--layer-pattern {model.layer_pattern} is {' or '.join(windowed)} without a window of its own: use, for "
            f"example, --layer-pattern {windowed[0]}, or remove --window-size"
        )


def _window_size_problems(window_size: tuple[int, int]) -> Iterator[str]:
    left, right = window_size
    if right != 0:
        yield (
            f"--window-size {left},{right} would attend to future tokens: RIGHT must be 0, as in "
            f"{left if left >= 0 else 127},0"
        )
    elif left < 0:
        yield (
            f"--window-size {left},0 has no meaning: LEFT is the number of tokens before a token; layers with full "
            "attention are fa in --layer-pattern"
        )
    elif left > _MOST_WINDOW:
        yield (
            f"--window-size {left},0 must be at most {_MOST_WINDOW},0; layers with full attention are fa in "
            "--layer-pattern"
        )
