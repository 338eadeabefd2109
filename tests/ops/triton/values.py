"""Inputs of the value chain with slots chosen by hand, and the same chain in dense float64 autograd: the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from megatron_fwpkm.ops import UndoLog
from megatron_fwpkm.ops.fast_weight_memory.triton.value_steps import VALUE_STEPS
from megatron_fwpkm.ops.fast_weight_memory.value_chain import ValueChain, ValueOptions
from megatron_fwpkm.ops.fast_weight_memory.write_plan import ValuePiece
from tests.ops.triton.harness import DEVICE

LEAVES = ("values", "slot_weights", "write_weights", "targets")


def numbered(*rows: tuple[int, ...]) -> list[ValuePiece]:
    """Pieces of which the rows are given (start to token), with the numbers that follow from the pieces before."""
    pieces: list[ValuePiece] = []
    for number, piece_rows in enumerate(rows):
        piece = ValuePiece(*piece_rows, number, 0, 0, 0)
        if pieces:
            last = pieces[-1]
            first_read = last.first_read + last.stop - last.emit_start
            first_error = last.first_error + last.written
            piece = piece._replace(
                first_read=first_read, first_error=first_error, write=last.write + (last.written > 0)
            )
        pieces.append(piece)
    return pieces


def drop_pieces(rows: int, chunk: int, shift: int) -> list[ValuePiece]:
    """Chunks of `chunk` rows, of which all but the last `shift` are written."""
    edges = [(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
    return numbered(*((a, b, a, max(a, b - shift), a, b, a) for a, b in edges))


@dataclass
class Values:
    """One call of the value chain."""

    slots: Tensor
    values: Tensor
    slot_weights: Tensor
    write_weights: Tensor
    targets: Tensor
    scales: Tensor
    pieces: list[ValuePiece]
    shift: int = 1
    frozen: bool = False
    undo_log: str = "fp32"
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> Values:
        """The same call in another precision, on the device under test."""
        tensors = {name: getattr(self, name).to(DEVICE, dtype) for name in (*LEAVES, "scales")}
        return replace(self, slots=self.slots.to(DEVICE), **tensors)


def make_values(
    slots: Tensor, *, num_slots: int = 40, columns: int = 12, chunk: int = 16, seed: int = 0, **changes: Any
) -> Values:
    """Draw everything but the slots [R, J]."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, width = slots.shape
    shift = changes.pop("shift", 1)
    pieces = changes.pop("pieces", None) or drop_pieces(rows, chunk, shift)
    stream = max(piece.token + piece.stop - piece.start for piece in pieces) + shift
    made = Values(
        slots,
        draw(num_slots, columns),
        draw(rows, width).softmax(1),
        draw(stream).sigmoid(),
        draw(stream, columns),
        torch.rand(len(pieces), generator=generator, dtype=torch.float64) + 0.5,
        pieces,
        shift,
    )
    return replace(made, **changes)


def random_slots(rows: int, width: int, num_slots: int = 40, seed: int = 0) -> Tensor:
    """Slots [R, J], with repetitions."""
    return torch.randint(0, num_slots, (rows, width), generator=torch.Generator().manual_seed(seed))


def _weigh(reads: Tensor) -> Tensor:
    """A fixed function of the reads to differentiate."""
    return (reads * torch.cos(torch.arange(reads.numel(), dtype=reads.dtype, device=reads.device)).view_as(reads)).sum()


def run_dense(call: Values) -> dict[str, Tensor]:
    """Reads, squared errors, the table and all gradients, as the equations of DESIGN 2.2 say."""
    leaves = {name: getattr(call, name).double().cpu().clone().requires_grad_() for name in LEAVES}
    table, slot_weights, write_weights, targets = leaves.values()
    reads, squares = [], []
    for piece, scale in zip(call.pieces, call.scales.double().cpu(), strict=True):
        slots = call.slots[piece.start : piece.stop].cpu()
        weights = slot_weights[piece.start : piece.stop]
        read = (weights.unsqueeze(-1) * table[slots]).sum(1)
        reads.append(read[piece.emit_start - piece.start :])
        written = piece.write_stop - piece.start
        if not written:
            continue
        error = read[:written] - targets[piece.token + call.shift : piece.token + call.shift + written]
        strength = write_weights[piece.token : piece.token + written, None]
        squares.append((strength * error.square()).sum(1))
        if not call.frozen:
            counted = call.slots[piece.count_start : piece.count_stop].flatten().cpu()
            counts = torch.bincount(counted, minlength=table.shape[0]).clamp(min=1)
            changes = (weights[:written] * strength).unsqueeze(-1) * error.unsqueeze(1)
            change = torch.zeros_like(table).index_add(0, slots[:written].flatten(), changes.flatten(0, 1))
            table = table - (scale / counts).unsqueeze(1) * change
    read = torch.cat(reads)
    gradients = torch.autograd.grad(_weigh(read), list(leaves.values()), allow_unused=True)
    found = {"reads": read, "squares": torch.cat([*squares, read.new_zeros(0)]), "table": table}
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        found[f"grad {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return {name: tensor.detach() for name, tensor in found.items()}


def run_triton(call: Values, needs: tuple[str, ...] = LEAVES) -> tuple[dict[str, Tensor], UndoLog]:
    """The same in Triton, and the log; gradients of the leaves in `needs` only."""
    leaves = {name: getattr(call, name).clone().requires_grad_(name in needs) for name in LEAVES}
    table, log = call.values.clone(), UndoLog()
    reads, squares = apply_triton(call, leaves, table, log)
    found = {"reads": reads.detach(), "squares": squares, "table": table.clone()}
    # Backward never looks at the table.
    table.fill_(float("nan"))
    return {**found, **gradients_of(reads, {name: leaves[name] for name in needs})}, log


def apply_triton(call: Values, leaves: dict[str, Tensor], table: Tensor, log: UndoLog) -> tuple[Tensor, Tensor]:
    """Run the chain on `table` in place."""
    plan = VALUE_STEPS.plan_writes(call.slots, call.pieces, table.shape[0])
    options = ValueOptions(VALUE_STEPS, call.pieces, plan, call.scales, call.shift, call.frozen, call.undo_log)
    return ValueChain.apply(*leaves.values(), table, options, log)


def gradients_of(reads: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a fixed function of the reads."""
    found = torch.autograd.grad(_weigh(reads), list(leaves.values())) if leaves else ()
    return {f"grad {name}": gradient for name, gradient in zip(leaves, found, strict=True)}
