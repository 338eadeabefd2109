"""The block around a memory in torch: its formulas, and which implementation is taken."""

from __future__ import annotations

import pytest

from megatron_fwpkm.ops.memory_block.block_steps import MAX_WIDTH, TORCH_STEPS, block_steps
from megatron_fwpkm.ops.memory_block.triton.block_functions import TRITON_STEPS
from tests.ops.block import make_block, run_reference, run_steps
from tests.ops.cases import distance


@pytest.mark.parametrize("gated", [True, False])
def test_torch_computes_the_formulas(gated: bool) -> None:
    leaves = make_block(gated=gated)
    expected, actual = run_reference(leaves), run_steps(TORCH_STEPS, leaves)
    assert actual.keys() == expected.keys() and ("gates" in actual) == gated
    far = {name: distance(actual[name], tensor) for name, tensor in expected.items()}
    assert max(far.values()) <= 1e-13, far


def test_kernels_go_with_a_memory_in_kernels() -> None:
    assert block_steps("triton", MAX_WIDTH, 16) is TRITON_STEPS
    assert block_steps("triton", MAX_WIDTH + 1, 16) is TORCH_STEPS, "a program cannot hold such a row"
    assert block_steps("sparse", 16, 16) is TORCH_STEPS
