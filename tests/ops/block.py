"""Inputs of the block around a memory, and what its steps make of them, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_fwpkm.ops.memory_block.block_steps import BlockSteps
from megatron_fwpkm.ops.memory_block.block_types import NormWeights
from megatron_fwpkm.ops.memory_block.reference import reference_inputs, reference_mixture, reference_standard

EPS = 1e-5
WEIGHTS = ("query", "value", "gate", "gate_row", "gate_bias")


class AllColumns:
    """One process that has all columns."""

    size = 1

    def __init__(self, num_columns: int) -> None:
        self.num_columns = num_columns

    def total(self, x: Tensor) -> Tensor:
        """Nothing to add."""
        return x

    def sum_shards(self, x: Tensor) -> Tensor:
        """Nothing to add."""
        return x


def make_block(
    tokens: tuple[int, ...] = (7, 2),
    hidden: int = 20,
    columns: int = 12,
    gated: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Leaves by name: those of the activations are in `dtype`, what a memory returns is at least float32."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "x": (*tokens, hidden), "query": (hidden,), "value": (hidden,), "gate": (hidden,), "gate_row": (1, hidden),
        "gate_bias": (1,), "values": (*tokens, columns), "reads": (*tokens, columns), "weight": (columns,),
        "projected": (*tokens, hidden), "bias": (hidden,),
    }  # fmt: skip
    found = {}
    for name, shape in shapes.items():
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        if name == "gate_row":
            drawn /= hidden**0.5  # 1 - g would cancel where a gate is all but open
        drawn = drawn.to(dtype)
        if gated or not name.startswith("gate"):
            found[name] = drawn.float() if name == "reads" and dtype != torch.float64 else drawn
    return found


def run_steps(steps: BlockSteps, leaves: dict[str, Tensor], columns: Any = None) -> dict[str, Tensor]:
    """Everything the steps give, and the gradients of a fixed function of it."""
    dtype = leaves["reads"].dtype
    columns = AllColumns(leaves["values"].shape[-1]) if columns is None else columns

    def run(x: Tensor, weights: NormWeights, **others: Tensor) -> dict[str, Tensor | None]:
        inputs = steps.normalize_hidden(x, weights, EPS, dtype)
        standard = steps.standardize_values(others["values"], dtype, columns)
        reads, weight = others["reads"], others["weight"]
        out = steps.mix_reads(reads, standard.mixed, inputs.gates, weight, EPS, x.dtype, columns)
        end = steps.add_output(inputs.residual, others["projected"], others["bias"])
        return {**inputs._asdict(), "targets": standard.targets, "mixed": standard.mixed, "out": out, "end": end}

    return _differentiate(run, leaves)


def run_reference(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same of the formulas, in float64."""

    def run(x: Tensor, weights: NormWeights, **others: Tensor) -> dict[str, Tensor | None]:
        inputs, standard = reference_inputs(x, weights, EPS), reference_standard(others["values"])
        out = reference_mixture(others["reads"], standard, inputs.gates, others["weight"], EPS)
        end = inputs.residual + others["projected"] + others["bias"]
        return {**inputs._asdict(), "targets": standard, "mixed": standard, "out": out, "end": end}

    return _differentiate(run, {name: leaf.double().cpu() for name, leaf in leaves.items()})


def fixed(name: str, like: Tensor) -> Tensor:
    """A fixed random tensor of a shape, in float64."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _differentiate(run: Callable[..., dict[str, Tensor | None]], drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in drawn.items()}
    weights = NormWeights(*(leaves.get(name) for name in WEIGHTS))  # type: ignore[arg-type]
    outputs = run(leaves["x"], weights, **{name: leaf for name, leaf in leaves.items() if name not in ("x", *WEIGHTS)})
    made = {name: output for name, output in outputs.items() if output is not None}
    loss = sum((output.double() * fixed(name, output)).sum() for name, output in made.items())
    gradients = torch.autograd.grad(loss, list(leaves.values()))  # type: ignore[arg-type]
    found = {name: output.detach() for name, output in made.items()}
    return found | {f"grad {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
