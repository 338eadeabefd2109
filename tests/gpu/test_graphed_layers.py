"""Memory layers in CUDA graphs give the bits of layers without: outputs, gradients, tables, journals, figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
from tests.layers.megatron import initialize
from tests.layers.test_cuda_graphs import assert_same
from tests.layers.test_fast_weight_tables import hidden, memory

pytestmark = pytest.mark.gpu

SMALL = {"topk": 2, "num_subkeys": 4, "chunk_size": 4}
CASES = [
    (8, {**SMALL, "reset": "step"}),
    (8, {**SMALL, "reset": "step", "bf16": True}),
    (8, {**SMALL, "reset": "never", "table_dtype": "bf16", "undo_log": "recompute"}),
    (8, {**SMALL, "reset": "step", "boundary": "carry", "undo_log": "bf16"}),
    (10, {"topk": 4, "num_subkeys": 8, "chunk_size": 4, "reset": "step"}),
]
"""Tokens of a sequence, and options; the last case has a short last chunk and more slots."""


@pytest.fixture(autouse=True)
def parallel_state() -> None:
    """One process is a whole world."""
    initialize()


def pair(**options: Any) -> tuple[FastWeightMemoryLayer, FastWeightMemoryLayer]:
    """Two layers on the device with the same weights and tables."""
    one, other = (memory(implementation="triton", **options).to("cuda") for _ in range(2))
    other.load_state_dict(one.state_dict())  # on a GPU, weights are drawn from a generator that went on
    return one, other


@pytest.mark.parametrize(("length", "options"), CASES, ids=str)
def test_graphs_give_the_same_bits_over_several_steps(length: int, options: dict[str, Any]) -> None:
    graphed, plain = pair(**options)
    before = graphed.values.clone()
    graphed.capture(2, hidden(9, length).to(graphed.output_proj.weight))
    assert torch.equal(graphed.values, before) and graphed.coverage() == 0, "capturing leaves no trace"
    # Two steps: one micro-batch, and as in a pipeline, where the third forward finds no free slot.
    assert_same(graphed, plain, "F0 B0 R F1 F2 F3 B1 B2 F4 B3 B4", length)


def test_replays_never_wait_for_the_gpu() -> None:
    graphed, _ = pair(**SMALL, reset="step")
    sample = hidden(9, 8).to(graphed.output_proj.weight).requires_grad_()
    graphed.capture(1, sample.detach())
    graphed(sample).square().sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graphed(sample).square().sum().backward()
        graphed.reset()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sample.grad is not None and sample.grad.isfinite().all()
