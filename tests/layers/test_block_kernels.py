"""The block around a memory in kernels is the block in torch, with the memory between its steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_fwpkm.layers import block_around_memory
from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
from megatron_fwpkm.ops.memory_block.block_steps import TORCH_STEPS
from megatron_fwpkm.ops.memory_block.triton.block_functions import TRITON_STEPS
from tests.layers.test_fast_weight_tables import hidden, memory
from tests.training.double_precision import double_precision


def _run(block: FastWeightMemoryLayer, length: int = 24) -> dict[str, torch.Tensor]:
    """Output, tables and gradients of a forward and backward pass."""
    x = hidden(1, length).requires_grad_()
    out = block(x)
    (out * hidden(2, length)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"out": out.detach(), "values": block.values.clone(), "grad x": x.grad, **gradients}


@double_precision()
@pytest.mark.parametrize("options", [{}, {"gate": False}, {"normalize_targets": False}], ids=str)
def test_kernels_compute_what_torch_does(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _run(memory(**options))
    monkeypatch.setattr(FastWeightMemoryLayer, "_implementation", lambda block: "triton")  # of the block only
    actual = _run(memory(**options))
    for name, tensor in expected.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(actual[name], tensor, rtol=1e-11, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_the_block_goes_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, choose = [], block_around_memory.block_steps

    def note(implementation: str, *widths: int) -> Any:
        asked.append((implementation, *widths))
        return choose(implementation, *widths)

    monkeypatch.setattr(block_around_memory, "block_steps", note)
    outputs = [memory(implementation=name)(hidden(1, 4)) for name in ("triton", "sparse")]
    assert asked == [("triton", 32, 16), ("sparse", 32, 16)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_torch_compile_is_given_the_form_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    block = memory(implementation="triton")
    assert block._steps(32) is TRITON_STEPS
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert block._steps(32) is TORCH_STEPS


def test_what_torch_compile_could_not_undo_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    block = memory(reset="step")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ValueError, match="no undo log, which --fwpkm-reset step .*: leave the layer out"):
        block(hidden(1, 4))
