"""Which releases of Transformers this model was made for. Ships inside exports and is checked when they are loaded.

An export outlives the release it was made with, and a later one may call the model in another way.
"""

from __future__ import annotations

import re
import warnings

import transformers

OLDEST, NEWEST = "5.17", "5.24"
"""First and last release, inclusive, that every way of calling the model was tested with."""


def check_transformers(installed: str) -> None:
    """Refuse a release that is too old for this model, and warn of one that is newer than any it was tested with.

    Args:
        installed: version of Transformers.

    Raises:
        ImportError: the release is older than OLDEST.
    """
    found = _release(installed)
    if found < _release(OLDEST):
        major, minor = _release(NEWEST)
        raise ImportError(
            f"this model requires transformers {OLDEST} or newer, but {installed} is installed: pip install "
            f"'transformers>={OLDEST},<{major}.{minor + 1}'"
        )
    if found > _release(NEWEST):
        warnings.warn(
            f"transformers {installed} is newer than {NEWEST}, the last release that this FwPKM model was tested "
            "with; calls that the model does not support raise an error, but compare its output with that of an "
            "earlier release before you rely on it, or export the model again with a newer megatron_fwpkm",
            stacklevel=2,
        )


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


check_transformers(transformers.__version__)
