"""Full float32 arithmetic, whatever the process has allowed elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BACKENDS: Any = torch.backends
_LEVELS: dict[str, tuple[Any, ...]] = {
    "cuda": (_BACKENDS.cuda.matmul, _BACKENDS.cudnn, _BACKENDS),
    # Setting torch.backends.mkldnn.fp32_precision sets that of all backends, so nothing is lost without it.
    "cpu": (_BACKENDS.mkldnn.matmul, _BACKENDS),
}
"""Type of device -> where torch looks for the precision of its matrix products: the first one that is not `none`."""


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run the body without autocast and tf32: scores near a key need all of float32 (DESIGN 2.1).

    Args:
        device: where the tensors of the body live.
    """
    with torch.autocast(device.type, enabled=False):
        levels = _LEVELS.get(device.type)
        if levels is None or levels[0].fp32_precision in ("none", "ieee"):
            yield
        else:
            with _without_reduced_products(levels[0]):
                yield


@contextmanager
def _without_reduced_products(matmul: Any) -> Iterator[None]:
    """Inside, products of the backend take all of float32; afterwards every switch is as it was.

    Torch has two sets of switches, and raises where they contradict each other. Whoever has used the old ones
    (`allow_tf32`, `set_float32_matmul_precision`) gets these, which set the new ones as well.
    """
    before = [(levels[0], _own(*levels)) for levels in _LEVELS.values()]
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # they contradict each other already, for the new ones alone were used
        old = "highest"
    try:
        if old == "highest":
            matmul.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if old != "highest":
            torch.set_float32_matmul_precision(old)
        for switch, own in before:
            switch.fp32_precision = own


def _own(level: Any, *above: Any) -> str:
    """What is set at a level itself; what is read there may come from a level above, and then it is `none`."""
    found: str = level.fp32_precision
    if not above:
        return found
    own_above = _own(*above)
    above[0].fp32_precision = "tf32" if found == "ieee" else "ieee"
    follows = level.fp32_precision != found
    above[0].fp32_precision = own_above
    return "none" if follows else found
