"""The releases of megatron-core that this project is tested with."""

from __future__ import annotations

_TRANSFORMER_ENGINE = {"0.16.1": ((2, 9), (2, 12)), "0.19.2": ((2, 9), (2, 21))}

SUPPORTED_MEGATRON = tuple(_TRANSFORMER_ENGINE)
"""From the oldest to the newest. The newer one declares Python 3.12."""


def is_supported(version: str) -> bool:
    """Whether `version` is one of the releases; newer ones add the commit of the folder they are used in."""
    return _release(version) in SUPPORTED_MEGATRON


def supported_megatron() -> str:
    """The releases in words."""
    return " and ".join(SUPPORTED_MEGATRON)


def megatron_for_python(version: tuple[int, ...]) -> str:
    """The newest of the releases that installs under this version of Python as it is."""
    return SUPPORTED_MEGATRON[-1 if version >= (3, 12) else 0]


def transformer_engine_range(version: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """The releases of Transformer Engine that go with this megatron-core, or the oldest one: from, below."""
    return _TRANSFORMER_ENGINE.get(_release(version), _TRANSFORMER_ENGINE[SUPPORTED_MEGATRON[0]])


def _release(version: str) -> str:
    return version.partition("+")[0]
