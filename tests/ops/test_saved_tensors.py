"""Whoever moves saved tensors to the host (activation offload) gets all that backward needs, and nothing changes."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.cases import Case, make_case

LARGE = 40
"""Numbers of a tensor that must not be kept beside the saved ones; there are fewer pieces, options and constants."""


class OnDisk:
    """A saved tensor that is no tensor any more."""

    def __init__(self, tensor: Tensor) -> None:
        self.data, self.dtype = tensor.detach().view(torch.uint8).numpy().copy(), tensor.dtype
        self.shape = tensor.shape


def stored(tensor: Tensor) -> OnDisk | Tensor:
    """Large ones leave the memory of torch; single numbers cannot be viewed as bytes."""
    return OnDisk(tensor.contiguous()) if tensor.ndim and tensor.numel() else tensor


def loaded(packed: OnDisk | Tensor) -> Tensor:
    """The tensor again."""
    if isinstance(packed, Tensor):
        return packed
    return torch.from_numpy(packed.data.copy()).view(packed.dtype).view(packed.shape)


def forward(case: Case, **options: Any) -> Tensor:
    """A loss that leaves nothing but its graph behind."""
    output = case.run(**options)
    reads = output.retrieved * torch.linspace(0, 1, output.retrieved.shape[-1])
    return reads.sum() + output.slot_weights[..., 0].sum()


def large_tensors() -> dict[int, Tensor]:
    """All that Python can find, by storage."""
    gc.collect()
    # `isinstance` would ask some objects of torch for their class, which they warn of.
    found = [one for one in gc.get_objects() if issubclass(type(one), Tensor) and one.numel() >= LARGE]
    return {tensor.untyped_storage().data_ptr(): tensor for tensor in found}


@pytest.mark.parametrize(
    ("implementation", "undo_log"),
    [
        *(("sparse", undo_log) for undo_log in ("fp32", "bf16", "recompute")),
        ("triton", "fp32"),
        *(pytest.param("triton", undo_log, marks=pytest.mark.slow) for undo_log in ("bf16", "recompute")),
    ],
)
def test_everything_that_is_kept_passes_the_hooks(implementation: str, undo_log: str) -> None:
    options = {"implementation": implementation, "undo_log": undo_log}
    case = make_case(3, batch=1, tokens=16, heads=1, topk=4, key_dim=8, dtype=torch.float32).requires_grad()
    leaves = list(case.leaves().values())
    expected = torch.autograd.grad(forward(case, **options), leaves)
    before = large_tensors()
    with torch.autograd.graph.saved_tensors_hooks(stored, loaded):
        loss = forward(case, **options)
    hidden = {place: tensor for place, tensor in large_tensors().items() if place not in before}
    assert not hidden, [(list(tensor.shape), tensor.dtype) for tensor in hidden.values()]
    found = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_hidden_tensor_is_found() -> None:
    before = large_tensors()
    kept = {"somewhere": torch.zeros(LARGE)}
    assert large_tensors().keys() - before.keys() == {kept["somewhere"].untyped_storage().data_ptr()}
