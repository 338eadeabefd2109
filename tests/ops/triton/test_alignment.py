"""Kernels get tensors that begin at multiples of 16 bytes, whatever views a caller passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.ops import FastWeightState
from megatron_fwpkm.ops.kernel_forms import KernelForm
from tests.ops.cases import Case, distance, make_case
from tests.ops.triton.harness import DEVICE


def at_odd_place(tensor: Tensor) -> Tensor:
    """The same numbers as a view that begins four bytes into its storage."""
    storage = tensor.new_empty(tensor.numel() + 1)
    view = storage[1:].view(tensor.shape)
    return view.copy_(tensor)


def everything(case: Case, implementation: str) -> list[Tensor]:
    """Reads, the moved sub-keys, the table and all gradients; the gradient of the reads comes as a view, too."""
    leaves = {name: at_odd_place(leaf.to(DEVICE)) for name, leaf in case.leaves().items() if name != "values"}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    values = case.state.values.to(DEVICE).clone().requires_grad_()
    state = FastWeightState(leaves["sub_keys"], values)
    moved = Case(leaves["queries"], leaves["targets"], leaves["gates"], None, state, case.options)
    output = moved.run(implementation=implementation)
    gradient = torch.linspace(-1, 1, output.retrieved.numel(), device=DEVICE).view_as(output.retrieved)
    gradients = torch.autograd.grad(output.retrieved, [*leaves.values(), values], at_odd_place(gradient))
    return [output.retrieved, output.state.sub_keys, output.state.values, *gradients]


def test_views_may_begin_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    unaligned: set[str] = set()
    launch = KernelForm.launch

    def look(form: KernelForm, grid: Any, *records: Any) -> None:
        known = {name: value for record in records for name, value in record.items() if isinstance(value, Tensor)}
        unaligned.update(name for name in form.parameters if name in known and known[name].data_ptr() % 16)
        launch(form, grid, *records)

    monkeypatch.setattr(KernelForm, "launch", look)
    case = make_case(3, batch=1, tokens=8, heads=1, topk=4, num_subkeys=4, key_dim=8, dtype=torch.float32, lookahead=2)
    actual = everything(case, "triton")
    assert not unaligned
    expected = everything(case, "sparse")
    assert all(distance(one, other) < 2e-6 for one, other in zip(actual, expected, strict=True))
