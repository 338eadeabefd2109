"""Seeds that depend on what is initialised and not on which process does it or in which order."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) that is a fixed function of ``seed`` and ``names``, the same on every machine."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextlib.contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Run the body with torch's CPU generator at ``derived_seed(seed, *names)``; its state is put back afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(derived_seed(seed, *names))
    try:
        yield
    finally:
        torch.set_rng_state(state)
