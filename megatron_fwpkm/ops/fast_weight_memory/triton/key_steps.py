"""The steps of the sub-keys' chain in Triton; every shape is known without the device, so the host never waits.

Shapes: G = heads * 2 groups, M tokens of a piece, n sub-keys of a whole list, n' of them here, k = topk,
h = key_dim / 2, R readers (tokens that move sub-keys, times heads).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernel_forms import KernelForm, cdiv, next_power_of_2
from ...product_key.epsilons import ENTROPY_EPSILON, IDW_EPSILON
from ...product_key.selection import KeptSubKeys, SlotChoice
from ...product_key.triton.select import address, rows_of, select_slots, select_sub_keys
from ..key_chain import KeyOptions, KeyPiece, SavedPiece
from ..key_rows import Readers, sort_readers
from . import key_kernels as kernels
from . import reader_kernels

TILE = 64
"""Most readers of a sub-key that one program sums."""
_LOADS = 8
"""Rows of a tile that a program loads at once."""
_NUMBERS = 2048
"""Numbers that the four warps of a program hold of what they sum, 16 to a thread."""
_WIDE = 32
"""Numbers of a sub-key from which on a program sums the readers of one, and the last of them finishes it. Triton 3.6
does not compile programs that sum those of eight sub-keys of 32 numbers."""
_READERS = 512
"""Readers of a sub-key whose numbers are loaded at once."""
_POINTERS = {
    "TOTALS": ("STRENGTHS", "PARTIAL_TOTALS"),
    "ADDED": ("BASE",),
    "FIND": ("SORTED_KEYS",),
    "LOSS": ("LOSSES",),
    "MEASURED": ("LENGTHS",),
    "LAST": ("TICKETS", "BASE", "OUT", "LENGTHS"),
    "SLOPES": ("COSTS", "PROBABILITIES", "STEP", "SLOPE_GRADIENTS"),
    "MOVED": ("PROBABILITIES", "STRENGTHS", "GRAD_STRENGTHS", "MEANS", "GRAD_SLOPES", "STEP", "GRAD_MOVED"),
}
"""What a kernel is not given where the flag of this name is False."""


class Sizes(NamedTuple):
    """How much a program does: the constants above."""

    tile: int
    loads: int
    numbers: int
    wide: int
    readers: int


@dataclass(frozen=True)
class KeyForms:
    """The forms in which kernels are launched for one shape.

    Attributes:
        topk: k.
        score: `idw` or `dot_product`.
        num_subkeys: n of a whole list.
        count: n', sub-keys of a list here.
        half_dim: h.
        groups: G.
        sizes: of programs.
    """

    topk: int
    score: str
    num_subkeys: int
    count: int
    half_dim: int
    groups: int
    sizes: Sizes = Sizes(TILE, _LOADS, _NUMBERS, _WIDE, _READERS)
    _forms: dict[tuple[Any, ...], KernelForm] = field(default_factory=dict, init=False, repr=False, compare=False)

    def most_tiles(self, pairs: int) -> int:
        """Room for the tiles of all sub-keys here, whatever their readers."""
        return pairs // self.sizes.tile + self.groups * self.count

    @property
    def measures(self) -> bool:
        """Whether a program that moves a sub-key has all its numbers, and so knows its length."""
        return self.blocks == 1

    def reader_mean(self, **flags: bool) -> KernelForm:
        """The mean over the readers of every sub-key."""
        readers = self.sizes.readers
        return self._form(
            reader_kernels.reader_mean_kernel, 4, ROWS=self.sizes.numbers // readers, BLOCK=readers, **flags
        )

    def per_token(self, kernel: Any) -> KernelForm:
        """A kernel that holds a token's k numbers, for a block of tokens."""
        return self._form(kernel, 1, ROWS=max(1, 256 // next_power_of_2(self.topk)))

    def per_row(self, kernel: Any, **flags: bool) -> KernelForm:
        """A kernel that holds k rows of a token's sub-keys."""
        padded = next_power_of_2(self.topk)
        block = min(next_power_of_2(self.half_dim), self.sizes.numbers // padded)
        # With four warps Triton 3.6 spills registers of this one.
        warps = 8 if kernel is kernels.strength_gradient_kernel else 4
        return self._form(kernel, warps, ROWS=self.sizes.numbers // (padded * block), BLOCK=block, **flags)

    def _sum_block(self) -> int:
        """Numbers of a sub-key that a program sums."""
        return min(next_power_of_2(self.half_dim), self.sizes.numbers // self.sizes.loads)

    @property
    def adds_last(self) -> bool:
        """Whether the last program of a sub-key finishes it, and not another launch."""
        return self._sum_block() >= self.sizes.wide

    @property
    def blocks(self) -> int:
        """Programs that share the numbers of a sub-key."""
        return cdiv(self.half_dim, self._sum_block())

    def per_sub_key(self, kernel: Any, **flags: bool) -> KernelForm:
        """A kernel that sums the readers of a sub-key."""
        block = self._sum_block()
        at_once = block * self.sizes.loads
        rows, warps = (1, max(1, at_once // 512)) if self.adds_last else (self.sizes.numbers // at_once, 4)
        return self._form(kernel, warps, ROWS=rows, BLOCK=block, **flags)

    def _form(self, kernel: Any, num_warps: int, **special: Any) -> KernelForm:
        key = id(kernel), *special.items()
        if key not in self._forms:
            self._forms[key] = self._make_form(kernel, num_warps, special)
        return self._forms[key]

    def _make_form(self, kernel: Any, num_warps: int, special: dict[str, Any]) -> KernelForm:
        segments = self.groups * self.count
        shape = {
            "EPSILON": IDW_EPSILON,
            "ENTROPY_EPSILON": ENTROPY_EPSILON,
            "IDW": self.score != "dot_product",
            "HEADS": self.groups // 2,
            "N": self.num_subkeys,
            "COUNT": self.count,
            "SEGMENTS": segments,
            "STEPS": (segments - 1).bit_length(),
            "H": self.half_dim,
            "K": self.topk,
            "K_PADDED": next_power_of_2(self.topk),
            "TILE": self.sizes.tile,
            "LOADS": self.sizes.loads,
        }
        absent = [name for flag, names in _POINTERS.items() if special.get(flag) is False for name in names]
        return KernelForm.of(kernel, shape | special, num_warps, absent)


@cache
def key_forms(*shape: Any) -> KeyForms:
    """The forms for a shape, which remember what was compiled."""
    return KeyForms(*shape)


class TritonKeySteps:
    """The steps of one call; `sparse/key_steps.py` says what each is for."""

    joins_still_pieces = True

    def __init__(self, queries: Tensor, options: KeyOptions) -> None:
        self.options, self.rows, self.heads = options, options.rows, queries.shape[0] // 2
        shape = self.rows.num_subkeys, self.rows.count, queries.shape[2], queries.shape[0]
        sizes = Sizes(TILE, _LOADS, _NUMBERS, _WIDE, _READERS)
        self.forms = key_forms(options.topk, options.score, *shape, sizes)
        # On the device, so that another step size needs no other kernel and no other CUDA graph.
        self.step = queries.new_full((1,), options.key_lr)
        self.tickets: Tensor | None = None
        if self.forms.adds_last:
            segments = self.forms.groups * self.forms.count
            self.tickets = torch.zeros(segments * self.forms.blocks, dtype=torch.int32, device=queries.device)
        self.forget_forward()

    def forget_forward(self) -> None:
        """Let go of what the pieces of a forward pass have left for each other."""
        self._sort_keys: tuple[Tensor | None, Tensor | None] = None, None
        self._moved: tuple[Tensor | None, Tensor | None] = None, None
        self._losses: Tensor | None = None
        self._measured_pieces = 0

    def propose(self, queries: Tensor, sub_keys: Tensor) -> KeptSubKeys:
        """The best of the sub-keys here; indices are int32."""
        topk = min(self.options.topk, self.rows.count)
        return select_sub_keys(queries, sub_keys, topk, self.options.score, self.rows.first, self._lengths(sub_keys))

    def address(
        self, queries: Tensor, sub_keys: Tensor, moving: int, chosen: KeptSubKeys | None = None
    ) -> tuple[KeptSubKeys, SlotChoice]:
        """The best sub-keys and slots, and probabilities of all tokens, 0 for those that do not move."""
        if self.rows.shared:
            if chosen is None:
                (chosen,) = self.rows.choose([self.propose(queries, sub_keys)], self.options.topk)
            return chosen, select_slots(chosen, self.rows.num_subkeys, self.options.score, moving)
        lengths = self._lengths(sub_keys)
        addressing = address(queries, sub_keys, self.options.topk, self.options.score, moving, lengths)
        self._sort_keys = addressing.kept.indices, addressing.sort_keys
        return addressing.kept, addressing.choice

    def _lengths(self, sub_keys: Tensor) -> Tensor | None:
        """What `move` has found of the sub-keys that it made."""
        return self._moved[1] if self._moved[0] is sub_keys else None

    def sort_readers(self, indices: Tensor) -> Readers:
        """Sorted; where they begin is found by the first mean over them, unless processes share the sub-keys."""
        keys = self._sort_keys[1] if self._sort_keys[0] is indices else None
        if keys is None:
            return sort_readers(indices, self.rows.num_subkeys)
        sorted_keys, order = keys.flatten().sort(stable=True)
        return Readers(order, order.new_empty(indices.shape[0] * self.rows.num_subkeys + 1), sorted_keys)

    def mean_probability(
        self, probabilities: Tensor, indices: Tensor, moving: int, readers: Readers | None = None
    ) -> Tensor:
        """Added in the order of the sorted pairs."""
        readers = readers or sort_readers(indices, self.rows.num_subkeys)
        if self._losses is None:
            pieces = sum(piece.moving > piece.start for piece in self.options.pieces)
            self._losses = probabilities.new_empty(pieces, 2, self.rows.num_subkeys)
        self._measured_pieces += 1
        return self.mean_over_readers(probabilities, readers, moving, self._losses)

    def losses(self, means: list[Tensor]) -> Tensor:
        """Of what the means have left."""
        assert self._losses is not None and len(means) == self._losses.shape[0]
        return self._losses.sum((1, 2))

    def mean_over_readers(self, weights: Tensor, readers: Readers, moving: int, losses: Tensor | None = None) -> Tensor:
        """[2, n]: sum of the numbers [G, M, k] of a sub-key's pairs, heads pooled, over the number of readers.

        Args:
            weights: the numbers.
            readers: the pairs by sub-key; where they begin is written if it is not known.
            moving: tokens that move the sub-keys.
            losses: [pieces, 2, n], of which the row of the piece at hand is written.
        """
        form = self.forms.reader_mean(FIND=readers.unsearched is not None, LOSS=losses is not None)
        num_subkeys, total = self.rows.num_subkeys, readers.order.shape[0]
        means = weights.new_empty(2, num_subkeys)
        record = {
            "WEIGHTS": weights,
            "MEANS": means,
            "SORTED_KEYS": readers.unsearched,
            "LOSSES": losses,
            "readers": self.heads * moving,
            "row": self._measured_pieces - 1,
            "total": total,
            "steps": total.bit_length(),
        }
        form.launch((cdiv(num_subkeys, form.constants["ROWS"]), 2), record, _by_name(readers))
        return means

    def strengths(self, kept: KeptSubKeys, probabilities: Tensor, means: Tensor, moving: int) -> Tensor:
        """c, how strongly a reader moves each sub-key it kept."""
        strengths = torch.empty_like(kept.costs)
        record = {
            "INDICES": kept.indices,
            "COSTS": kept.costs,
            "PROBABILITIES": probabilities,
            "MEANS": means,
            "STEP": self.step,
            "STRENGTHS": strengths,
            "tokens": kept.costs.shape[1],
            "readers": self.heads * moving,
        }
        _launch_on_tokens(self.forms.per_token(kernels.strength_kernel), record)
        return strengths

    def move(self, queries: Tensor, sub_keys: Tensor, kept: KeptSubKeys, strengths: Tensor, readers: Readers) -> Tensor:
        """The sub-keys less the sum of c * direction."""
        record = self.queries_record(queries) | {"WEIGHTS": strengths, "SUB_KEYS": sub_keys, "BASE": sub_keys}
        lengths = sub_keys.new_empty(sub_keys.shape[:2]) if self.forms.measures else None
        moved = _sum_per_sub_key(self.forms, record | {"LENGTHS": lengths, "TICKETS": self.tickets}, readers)
        self._moved = moved, lengths
        return moved

    def backward(
        self, queries: Tensor, piece: KeyPiece, saved: SavedPiece, grad_moved: Tensor | None
    ) -> TritonPieceBackward:
        """Begin the backward of a piece."""
        return TritonPieceBackward(self, queries, piece, saved, grad_moved)

    def queries_record(self, queries: Tensor) -> dict[str, Any]:
        """Queries [G, M, h] of a piece by the names of the kernels' parameters."""
        rows, group_rows, token_rows = rows_of(queries)
        return {
            "QUERIES": rows,
            "group_rows": group_rows,
            "token_rows": token_rows,
            "tokens": queries.shape[1],
            "first_key": self.rows.first,
        }


class TritonPieceBackward:
    """Backward of one piece, as `SparsePieceBackward`."""

    def __init__(
        self, steps: TritonKeySteps, queries: Tensor, piece: KeyPiece, saved: SavedPiece, grad_moved: Tensor | None
    ) -> None:
        self.steps, self.forms, self.saved = steps, steps.forms, saved
        self.moving, self.moved = piece.moving - piece.start, False
        self.slopes: Tensor | None = None
        self.record = steps.queries_record(queries) | {
            "SUB_KEYS": saved.sub_keys,
            "INDICES": saved.indices,
            "COSTS": saved.costs,
            "POSITIONS": saved.positions,
            "PROBABILITIES": saved.probabilities,
            "STRENGTHS": saved.strengths,
            "MEANS": saved.means,
            "STEP": steps.step,
            "GRAD_MOVED": grad_moved,
            # A divisor, which is ignored where nothing moves.
            "readers": max(1, steps.heads * self.moving),
        }

    def strength_gradients(self) -> Tensor:
        """gamma, the gradient of c."""
        gradients = torch.empty_like(self.saved.costs)
        if not self.steps.rows.shared:
            self.slopes = torch.empty_like(gradients)
        form = self.forms.per_row(kernels.strength_gradient_kernel, SLOPES=self.slopes is not None)
        _launch_on_tokens(form, self.record | {"GRAD_STRENGTHS": gradients, "SLOPE_GRADIENTS": self.slopes})
        return gradients

    def token_gradients(self, grad_scores: Tensor, grad_queries: Tensor, grad_strengths: Tensor | None) -> Tensor:
        """Add the gradients of the queries, a part of a contiguous tensor; returns the sub-keys' weights."""
        weights = torch.empty_like(self.saved.costs)
        record = self.record | {
            "GRAD_SCORES": grad_scores,
            "GRAD_QUERIES": grad_queries,
            "grad_rows": grad_queries.stride(0) // grad_queries.shape[2],
            "WEIGHTS": weights,
        }
        self.moved = grad_strengths is not None
        if self.moved:
            record["GRAD_STRENGTHS"] = grad_strengths
            if self.slopes is None:
                # Known only now that processes have added up what they know of the strengths.
                self.slopes = record["SLOPE_GRADIENTS"] = torch.empty_like(self.saved.costs)
                _launch_on_tokens(self.forms.per_token(kernels.slope_gradient_kernel), record)
            readers = Readers(self.saved.order, self.saved.starts)
            record["GRAD_SLOPES"] = self.steps.mean_over_readers(self.slopes, readers, self.moving)
        _launch_on_tokens(self.forms.per_row(kernels.token_backward_kernel, MOVED=self.moved), record)
        return weights

    def sub_key_gradients(self, weights: Tensor, readers: Readers) -> Tensor:
        """Gradient of the sub-keys before the piece."""
        # K' = K - c (q - K) contains K twice.
        strengths = self.saved.strengths if self.moved and self.forms.score != "dot_product" else None
        record = {"WEIGHTS": weights, "STRENGTHS": strengths, "BASE": self.record["GRAD_MOVED"]}
        record["TICKETS"] = self.steps.tickets
        return _sum_per_sub_key(self.forms, self.record | record, readers)


def _launch_on_tokens(form: KernelForm, record: dict[str, Any]) -> None:
    """Launch one program for each block of tokens of each group; COSTS [G, M, k] is in the record."""
    groups, tokens, _ = record["COSTS"].shape
    form.launch((cdiv(tokens, form.constants["ROWS"]), groups), record)


def _sum_per_sub_key(forms: KeyForms, record: dict[str, Any], readers: Readers) -> Tensor:
    """BASE * (1 + sum of STRENGTHS) - sum of WEIGHTS * direction over every sub-key's readers, [G, n', h].

    Args:
        forms: of the call.
        record: WEIGHTS [G, M, k], the queries, SUB_KEYS [G, n', h] (a direction is q - K, for dot products q), BASE
            [G, n', h] or None for 0, and STRENGTHS [G, M, k], None or missing for 0.
        readers: the piece's sorted pairs.
    """
    sub_keys, totals = record["SUB_KEYS"], record.get("STRENGTHS") is not None
    segments, half_dim = sub_keys.shape[0] * sub_keys.shape[1], sub_keys.shape[2]
    num_tiles = forms.most_tiles(record["WEIGHTS"].numel())
    out = torch.empty_like(sub_keys, memory_format=torch.contiguous_format)
    flags = {"ADDED": record["BASE"] is not None, "TOTALS": totals, "MEASURED": record.get("LENGTHS") is not None}
    tiles = forms.per_sub_key(reader_kernels.tile_kernel, LAST=forms.adds_last, **flags)
    grid = cdiv(num_tiles, tiles.constants["ROWS"]), forms.blocks
    record = record | _by_name(readers) | {"PARTIALS": sub_keys.new_empty(num_tiles, half_dim), "OUT": out}
    if totals:
        record["PARTIAL_TOTALS"] = sub_keys.new_empty(forms.blocks, grid[0] * tiles.constants["ROWS"])
    tiles.launch(grid, record)
    if not forms.adds_last:
        finish = forms.per_sub_key(reader_kernels.finish_kernel, **flags)
        finish.launch((cdiv(segments, finish.constants["ROWS"]), forms.blocks), record)
    return out


def _by_name(readers: Readers) -> dict[str, Tensor]:
    return {"ORDER": readers.order, "STARTS": readers.starts}
