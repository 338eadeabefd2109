"""Seeds are functions of what is initialised."""

from __future__ import annotations

import torch

from megatron_fwpkm.layers.seeding import seeded
from megatron_fwpkm.ops.initialization import derived_seed


def test_seeds_are_fixed_for_ever() -> None:
    """Another value would change the initial memory under checkpoints that rely on it."""
    assert derived_seed(1234, "values", 3) == 1701906578962910093
    assert len({derived_seed(seed, name, layer) for seed in (1, 2) for name in ("a", "b") for layer in (1, 11)}) == 8


def test_the_outer_stream_goes_on_as_if_nothing_had_been_drawn() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    first = torch.rand(2)
    with seeded(1, "layer", 2):
        inside = torch.rand(3)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)
    with seeded(1, "layer", 2):
        assert torch.equal(torch.rand(3), inside)
