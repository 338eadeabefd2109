"""A memory per sequence: every sequence of a micro-batch is what it is alone, and leaves the initial memory.

What a memory returns for given queries is compared bit for bit. The linears around it sum over a micro-batch in an
order of their own, so whole layers are compared to rounding, in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.layers.fast_weight_mlp import FastWeightMLPLayer
from megatron_fwpkm.models.transformer_config import transformer_config
from tests.layers.megatron import tiny
from tests.layers.test_fast_weight_tables import hidden, memory
from tests.training.double_precision import double_precision

KINDS: dict[str, dict[str, Any]] = {
    "sparse": {"implementation": "sparse"},
    "plain": {"implementation": "plain"},
    "reference": {"implementation": "reference"},
    "triton": {"implementation": "triton", "chunk_size": 8, "topk": 2},
    "carry": {"boundary": "carry", "lookahead": 2},
    "log recompute": {"undo_log": "recompute"},
    "log bf16": {"undo_log": "bf16"},
    "heads, no gate": {"num_heads": 2, "gate": False},
    "fwmlp": {"kind": "fwmlp", "gate_writes": True},
    "fwmlp, carry": {"kind": "fwmlp", "boundary": "carry", "lookahead": 2},
}


def layer(owner: str, *, kind: str = "fwpkm", reset: str = "step", **options: Any) -> Any:
    """A layer with a memory, always with the same weights."""
    options |= {"owner": owner, "reset": reset}
    if kind == "fwpkm":
        implementation = options.pop("implementation", "sparse")
        made = memory(**options)
        made.options = replace(made.options, implementation=implementation)
        return made
    torch.manual_seed(0)
    return FastWeightMLPLayer(transformer_config(tiny(fwmlp=options)), layer_number=2)


def tables(block: Any) -> dict[str, Tensor]:
    return {name: table.clone() for name, table in block.fast_weights().tables().items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def projected(block: Any, seed: int, length: int, sequences: int = 3) -> list[Tensor]:
    """Queries, values and, where there are any, gates of sequences, [s, b, ...]."""
    draw = torch.Generator().manual_seed(seed)
    widths = [block.query_proj.weight.shape[0], 16] + [1] * block.block_options.gate
    drawn = [torch.randn(length, sequences, width, generator=draw, dtype=block.table_dtype) for width in widths]
    return drawn[:2] + [gates.sigmoid() for gates in drawn[2:]]


def remembered(block: Any, inputs: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    """What a memory returns, and the gradients of its inputs; every sequence weighs its reads in a way of its own."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    reads = block._remember(*leaves[:2], leaves[2] if len(leaves) > 2 else None, mask)
    (reads * inputs[1].cos()).sum().backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [reads.detach(), *gradients]


@double_precision()
@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.parametrize("name", [pytest.param(k, marks=[pytest.mark.slow] * (k == "triton")) for k in KINDS])
def test_every_sequence_is_what_it_is_alone(name: str) -> None:
    """Bit for bit what micro-batches of one sequence give with a reset before each; a table is never left written."""
    options = KINDS[name]
    length, sequences = (13, 2) if name == "triton" else (45, 3)  # not a whole number of chunks
    block, alone = layer("sequence", **options), layer("micro-batch", **options)
    inputs, initial = projected(block, 1, length, sequences), tables(block)
    mask = torch.ones(sequences, length)
    mask[1, length // 2 :] = 0
    together = remembered(block, inputs, mask)
    assert block.table_dtype == torch.float64 and same(tables(block), initial)
    apart = []
    for one in range(sequences):
        alone.reset()
        part = slice(one, one + 1)
        apart.append(remembered(alone, [x[:, part] for x in inputs], mask[part]))
        assert not same(tables(alone), initial)
    for found, parts in zip(together, zip(*apart, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts, dim=1))
    shared = remembered(layer("micro-batch", **options), inputs, mask)
    assert not torch.allclose(shared[0], together[0]), "the sequences of a micro-batch share a memory otherwise"


@double_precision()
@pytest.mark.parametrize("name", ["sparse", "fwmlp"])
def test_neighbours_do_not_matter(name: str) -> None:
    """Neither their order, nor what they say; and a document is a sequence where no others are marked."""
    block = layer("sequence", **KINDS[name])
    inputs, others = projected(block, 1, 48), projected(block, 2, 48)
    expected = remembered(block, inputs, None)
    turned = remembered(block, [x[:, [2, 0, 1]] for x in inputs], None)
    for found, right in zip(turned, expected, strict=True):
        assert torch.equal(found, right[:, [2, 0, 1]])
    mixed = [torch.cat([x[:, :1], other[:, 1:]], dim=1) for x, other in zip(inputs, others, strict=True)]
    replaced = remembered(block, mixed, None)
    for found, right in zip(replaced, expected, strict=True):
        assert torch.equal(found[:, 0], right[:, 0]) and not torch.equal(found[:, 1], right[:, 1])
    for owner in ("sequence", "micro-batch"):
        documents = remembered(layer(owner, reset="document", **KINDS[name]), inputs, None)
        assert all(torch.equal(found, right) for found, right in zip(documents, expected, strict=True))


@double_precision()
@pytest.mark.parametrize("name", ["sparse", "fwmlp"])
def test_a_layer_trains_as_on_its_sequences_alone(name: str) -> None:
    """Losses and gradients of all weights, with two forwards before their backwards, as in a pipeline."""
    block, alone = layer("sequence", **KINDS[name]), layer("micro-batch", **KINDS[name])
    outputs = [block(hidden(seed)) for seed in (1, 2)]
    sum(out.square().sum() for out in outputs).backward()
    for out, seed in zip(outputs, (1, 2), strict=True):
        for one in range(2):
            alone.reset()
            single = alone(hidden(seed)[:, one : one + 1])
            torch.testing.assert_close(out[:, one], single[:, 0], rtol=0, atol=1e-12)
            single.square().sum().backward()
    for (where, parameter), other in zip(block.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-11, atol=1e-11, msg=where)


def test_marks_of_documents_are_for_a_reset_at_them() -> None:
    """Another kind of memory in the model may be reset at documents; a sequence is then still one text here."""
    marked, expected = (layer("sequence") for _ in range(2))
    marked.document_starts = torch.zeros(2, 48, dtype=torch.bool)
    marked.document_starts[:, 20] = True
    assert torch.equal(marked(hidden(1)), expected(hidden(1)))


def test_figures_are_those_of_the_last_forward() -> None:
    """Slots that any of its sequences wrote; collisions within the chunks of a sequence, which another cannot join."""
    block, twice = layer("sequence"), hidden(1)
    twice[:, 1] = twice[:, 0]
    block(hidden(2))
    block(twice)
    found = block.statistics()
    alone = layer("micro-batch")
    alone(twice[:, :1])
    expected = alone.statistics()
    assert 0 < found.coverage == expected.coverage < 1 and found.collisions == expected.collisions
    assert found.memorization_loss == pytest.approx(expected.memorization_loss, rel=1e-5)
    with block.preserve_fast_weights():
        block.eval()(hidden(3))
        assert block.wrote_only_finite()
    assert block.statistics() == found


def test_a_table_in_bfloat16_comes_back_bit_for_bit() -> None:
    block = layer("sequence", table_dtype="bf16")
    initial = tables(block)
    for seed in range(3):
        block(hidden(seed)).sum().backward()
        assert {name for name, table in tables(block).items() if not torch.equal(table, initial[name])} <= {"rounding"}
