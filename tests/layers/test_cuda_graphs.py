"""Memory layers in CUDA graphs, pretended on the CPU: the same numbers, in the order of a pipeline, slot by slot."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
from megatron_fwpkm.ops import ResetJournal
from tests.layers.pretended_graphs import pretended_graphs
from tests.layers.test_fast_weight_tables import hidden, memory

LENGTH = 8


def small(**options: Any) -> FastWeightMemoryLayer:
    return memory(implementation="triton", topk=2, chunk_size=4, num_subkeys=4, **options)


def take(total: Tensor, parameter: Tensor) -> None:
    """Add a parameter's gradient to a total and drop it."""
    assert parameter.grad is not None
    total.add_(parameter.grad)
    parameter.grad = None


def results(block: FastWeightMemoryLayer, schedule: str, length: int = LENGTH) -> list[Tensor]:
    """What forwards and backwards give, with tables, figures and journal; a schedule is `F0 F1 B0 R F2 B1 B2`."""
    like, journal = block.output_proj.weight, block._journal
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    found: list[Tensor] = []
    gradients = {name: torch.zeros_like(parameter) for name, parameter in block.named_parameters()}
    taken = [
        # As Megatron's DDP: a gradient is a tensor of its slot, which the next backward writes again.
        parameter.register_post_accumulate_grad_hook(partial(take, gradients[name]))
        for name, parameter in block.named_parameters()
    ]
    for word in schedule.split():
        number = word[1:]
        if word[0] == "F":
            inputs[number] = hidden(int(number), length).to(like).requires_grad_()
            outputs[number] = block(inputs[number])
            found += [outputs[number].detach().clone(), block.statistics_on_device(), block.consistency_hash()]
        elif word[0] == "B":
            outputs.pop(number).square().sum().backward()
            found.append(inputs[number].grad.clone())  # type: ignore[union-attr]
            found += [] if journal is None else [journal.touched.clone(), *(x.clone() for x in written(journal))]
        else:
            block.reset()
    for hook in taken:
        hook.remove()
    return [*found, *gradients.values(), block.sub_keys.clone(), block.values.clone()]


def written(journal: ResetJournal) -> tuple[Tensor, ...]:
    """The slots that were written since the last reset, and what they held before."""
    return journal.slots_and_values() or ()


def assert_same(
    graphed: FastWeightMemoryLayer, plain: FastWeightMemoryLayer, schedule: str, length: int = LENGTH
) -> None:
    for one, other in zip(results(graphed, schedule, length), results(plain, schedule, length), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"reset": "step"}, marks=pytest.mark.slow),
        pytest.param({"table_dtype": "bf16", "undo_log": "recompute"}, marks=pytest.mark.slow),
        pytest.param({"boundary": "carry"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_graphs_give_the_same_bits_in_the_order_of_a_pipeline(options: dict[str, Any]) -> None:
    graphed, plain = small(**options), small(**options)
    before = graphed.values.clone()
    with pretended_graphs() as graphs:
        graphed.capture(2, hidden(9, LENGTH))
        assert torch.equal(graphed.values, before) and graphed.coverage() == 0, "capturing leaves no trace"
        assert_same(graphed, plain, "F0 F1 B0 F2 B1 R B2")
    # Slot 0 holds micro-batches 0 and 2, slot 1 holds 1.
    assert [graph.replays for graph in graphs] == [2, 2, 1, 1]


@pytest.mark.slow
def test_a_forward_without_a_free_slot_runs_without_a_graph() -> None:
    graphed, plain = small(), small()
    with pretended_graphs() as graphs:
        graphed.capture(1, hidden(9, LENGTH))
        assert_same(graphed, plain, "F0 F1 B1 B0")
        assert [graph.replays for graph in graphs] == [1, 1]
        graphed(hidden(3, LENGTH))  # its graph of autograd is gone at once
        graphed(hidden(4, LENGTH))
        assert [graph.replays for graph in graphs] == [3, 1]


@pytest.mark.slow
def test_what_was_not_captured_runs_without_a_graph() -> None:
    block = small()
    with pretended_graphs() as graphs:
        block.capture(1, hidden(9, LENGTH))
        with torch.no_grad():
            block(hidden(1, LENGTH))
        block(hidden(1, 2 * LENGTH))
        block(hidden(1, LENGTH).double().float(), torch.ones(2, LENGTH))
        block.eval()
        block(hidden(1, LENGTH))
        block.train()
        block.streaming = True
        block(hidden(1, LENGTH))
        block.streaming = False
        captured, block.options = block.options, replace(block.options, inner_lr=0.5)
        block(hidden(1, LENGTH))
        block.options = captured
        assert [graph.replays for graph in graphs] == [0, 0]
        block(hidden(1, LENGTH))
        assert graphs[0].replays == 1
