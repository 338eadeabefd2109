"""The releases of megatron-core that this project is tested with."""

from __future__ import annotations

SUPPORTED_MEGATRON = ("0.16.1", "0.19.2")
"""From the oldest to the newest. The newer one declares Python 3.12."""


def is_supported(version: str) -> bool:
    """Whether `version` is one of the releases; builds may add a local part, as in `0.19.2+52b2997`."""
    return version.partition("+")[0] in SUPPORTED_MEGATRON


def supported_megatron() -> str:
    """The releases in words."""
    return " and ".join(SUPPORTED_MEGATRON)


def megatron_for_python(version: tuple[int, ...]) -> str:
    """The newest of the releases that installs under this version of Python as it is."""
    return SUPPORTED_MEGATRON[-1 if version >= (3, 12) else 0]
