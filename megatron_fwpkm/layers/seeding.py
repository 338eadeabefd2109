"""Seeds that depend on what is initialised and not on which process does it or in which order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..ops.initialization import derived_seed


@contextlib.contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Run the body with torch's CPU generator at `derived_seed(seed, *names)`; its state is put back afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(derived_seed(seed, *names))
    try:
        yield
    finally:
        torch.set_rng_state(state)
