"""bfloat16 tables in Triton: the same bits as in torch, and the same everything else up to rounding errors."""

from __future__ import annotations

from dataclasses import replace

import torch

from megatron_fwpkm.ops import FastWeightState, UndoLog, make_rounding
from megatron_fwpkm.ops.fast_weight_memory.sparse.value_steps import VALUE_STEPS as TORCH
from megatron_fwpkm.ops.fast_weight_memory.triton.value_steps import VALUE_STEPS as TRITON
from megatron_fwpkm.ops.fast_weight_memory.triton.value_steps import read_rows
from megatron_fwpkm.ops.fast_weight_memory.value_chain import ValueChain, ValueOptions, ValueSteps
from megatron_fwpkm.ops.fast_weight_memory.write_plan import make_write_plan
from tests.ops.cases import distance
from tests.ops.triton.harness import DEVICE, poisoned
from tests.ops.triton.test_value_chain import hot_slot
from tests.ops.triton.values import LEAVES, Values, gradients_of, make_values, random_slots


def run(steps: ValueSteps, call: Values, rounding: torch.Tensor) -> tuple[dict[str, torch.Tensor], UndoLog]:
    """Everything one call gives on a bfloat16 table."""
    table = call.values.bfloat16()
    leaves = {name: getattr(call, name).clone().requires_grad_() for name in LEAVES}
    leaves["values"] = table.clone().requires_grad_()
    log = UndoLog()
    plan = make_write_plan(call.slots, call.pieces, table.shape[0])
    options = ValueOptions(steps, call.pieces, plan, call.scales, call.shift, call.frozen, "fp32", rounding)
    reads, squares = ValueChain.apply(*leaves.values(), table, options, log)
    return {"reads": reads.detach(), "squares": squares, "table": table, **gradients_of(reads, leaves)}, log


def test_the_chain_is_that_of_torch() -> None:
    call = make_values(hot_slot(), chunk=15, columns=132).to(torch.float32)
    rounding = make_rounding(5, 64, DEVICE)
    rounding[1] = 2**33 + 7
    expected, _ = run(TORCH, call, rounding)
    with poisoned():
        actual, log = run(TRITON, call, rounding)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        if name == "table":
            # A sum that ends in another last bit tips a value in 65,536 to the other side.
            assert (actual[name] != tensor).double().mean() < 1e-3
        else:
            assert distance(actual[name], tensor) <= (2e-2 if name == "grad values" else 2e-6), name
    assert (actual["table"] != call.values.bfloat16()).any()
    assert log.old_values[0].dtype == torch.bfloat16
    log.undo_(FastWeightState(call.values, actual["table"]))
    assert torch.equal(actual["table"], call.values.bfloat16())


def test_where_the_arithmetic_is_exact_tables_are_the_same_bits() -> None:
    """Small whole numbers and powers of two: no sum is rounded, so torch and Triton round the same values."""
    # Every slot is read twice, so that counts are a power of two.
    slots = (torch.arange(24) % 12).view(12, 2)
    call = make_values(slots, num_slots=12, chunk=12, shift=2).to(torch.float32)
    exact = replace(call, values=(call.values * 4).round(), targets=(call.targets * 4).round())
    exact.slot_weights.fill_(0.5)
    exact.write_weights.fill_(2.0**-7)
    exact.scales.fill_(1.0)
    rounding = make_rounding(1, 4, DEVICE)
    expected, _ = run(TORCH, exact, rounding)
    actual, _ = run(TRITON, exact, rounding)
    assert torch.equal(actual["table"], expected["table"])
    other, _ = run(TRITON, exact, make_rounding(2, 4, DEVICE))
    assert 0.05 < (other["table"] != expected["table"]).double().mean() < 0.7


def test_reads_alone() -> None:
    call = make_values(random_slots(7, 3), chunk=7).to(torch.float32)
    table = call.values.bfloat16()
    expected = (call.slot_weights.unsqueeze(-1) * table.float()[call.slots]).sum(1)
    assert distance(read_rows(table, call.slots, call.slot_weights), expected) <= 1e-6
