"""Rotary positions as Transformers spells them: `rope_parameters`, formerly `rope_theta` and `rope_scaling`.

The configuration has fields of its own, from which both are made; what is read from them must agree. Ships inside
exports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_fwpkm import FwPKMHFConfig

SCALED_FROM, SCALED_WHOLLY = 8192 / 4, 8192
"""Wavelengths in tokens: from the first on a rotary frequency is scaled in part, from the second on wholly. Llama 3.1's
numbers, which Megatron does not let one change either."""
SPELLINGS = ("rope_scaling", "rope_parameters")
_LLAMA = {"low_freq_factor": 1.0, "high_freq_factor": SCALED_WHOLLY / SCALED_FROM,
          "original_max_position_embeddings": SCALED_WHOLLY}  # fmt: skip
_YARN = {
    "factor": "yarn_factor", "original_max_position_embeddings": "yarn_original_length",
    "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow",
}  # fmt: skip
"""Our fields by the keys of Transformers."""
_BASE = ("rope_theta", "partial_rotary_factor")
ROPE_FIELDS = (*_BASE, "rope_scaling_factor", *_YARN.values())
"""Our fields."""


def new_spelling(config: FwPKMHFConfig) -> dict[str, Any]:
    """The rotary positions as Transformers 5 spells them."""
    return {**(old_spelling(config) or {"rope_type": "default"}), **{name: getattr(config, name) for name in _BASE}}


def old_spelling(config: FwPKMHFConfig) -> dict[str, Any] | None:
    """Their scaling as earlier releases spell it, beside `rope_theta`; None without one."""
    if config.rope_scaling_factor is not None:
        return {"rope_type": "llama3", "factor": config.rope_scaling_factor, **_LLAMA}
    if config.yarn_factor is None:
        return None
    found = {key: getattr(config, name) for key, name in _YARN.items()}
    found["original_max_position_embeddings"] = config.yarn_original_length or config.training_length
    return {"rope_type": "yarn", **found}


def fields_of(spelling: str, given: object) -> dict[str, Any]:
    """Our fields that follow from a value of `rope_scaling` or `rope_parameters`.

    Raises:
        ValueError: it is no dictionary, or describes positions that the model does not have.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{spelling}={given!r} must be a dictionary, or None")
    rest = dict(given)
    kind = rest.pop("rope_type", rest.pop("type", "default"))
    rest.pop("type", None)
    found = {name: rest.pop(name) for name in _BASE if rest.get(name) is not None}
    found |= {"rope_scaling_factor": None, "yarn_factor": None}
    fixed: Mapping[str, Any] = {}
    if kind == "llama3":
        found["rope_scaling_factor"], fixed = rest.pop("factor", None), _LLAMA
    elif kind == "yarn":
        found |= {name: rest.pop(key) for key, name in _YARN.items() if rest.get(key) is not None}
        fixed = {"truncate": True, "attention_factor": _amplitude(found["yarn_factor"])}
    elif kind != "default":
        raise ValueError(f"{spelling} has the rope_type {kind!r}, which is not supported; use default, llama3 or yarn")
    if kind != "default" and found["rope_scaling_factor"] is found["yarn_factor"] is None:
        raise ValueError(f"{spelling}={given!r} has no factor, which rope_type {kind!r} needs; give it")
    for name, value in rest.items():
        if value is not None and (name not in fixed or not _same(value, fixed[name])):
            supported = f"only {fixed[name]!r} is" if name in fixed else "it is not"
            raise ValueError(f"{spelling} contains {name}={value!r}, but {supported} supported; remove it")
    return found


def agreed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a configuration with our fields alone, from those and both spellings.

    Raises:
        ValueError: they say different things, or what the model does not have.
    """
    # Without an original length that of training counts, which is written into the spellings.
    silent = (*SPELLINGS, "yarn_original_length") if given.get("yarn_original_length") is None else SPELLINGS
    found = {name: value for name, value in given.items() if name not in silent}
    said_by = dict.fromkeys(found, "")
    for spelling in SPELLINGS:
        if (value := given.get(spelling)) is None:
            continue
        for name, own in fields_of(spelling, value).items():
            if name in found and not _same(found[name], own):
                raise ValueError(
                    f"{name}={found[name]!r}{said_by[name]} and {spelling}={value!r} disagree about the rotary "
                    "positions; change one of them, or remove it"
                )
            if name not in found:
                found[name], said_by[name] = own, f" (from {spelling})"
    return found


def take(config: FwPKMHFConfig, spelling: str, given: object) -> None:
    """Set our fields to what a value of `rope_scaling` or `rope_parameters` says; None says nothing.

    Raises:
        ValueError: as `fields_of`.
    """
    if given is not None:
        for name, value in fields_of(spelling, given).items():
            setattr(config, name, value)


def _amplitude(factor: object) -> float | None:
    """What YaRN multiplies cosines and sines by; None for a factor that is no number above 1."""
    usable = isinstance(factor, int | float) and factor > 1
    return 0.1 * math.log(factor) + 1.0 if usable else None  # type: ignore[arg-type]


def _same(one: object, other: object) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other
