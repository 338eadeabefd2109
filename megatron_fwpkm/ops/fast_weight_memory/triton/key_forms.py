"""The forms in which the kernels of the sub-keys are launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton

from ...kernel_forms import KernelForm
from ...product_key.epsilons import ENTROPY_EPSILON, IDW_EPSILON
from . import key_kernels as kernels

TILE = 64
"""Most readers of a sub-key that one program sums."""
_LOADS = 8
"""Rows of a tile that a program loads at once."""
_NUMBERS = 2048
"""Numbers that the four warps of a program hold of what they sum, 16 to a thread."""
_READERS = 512
"""Readers of a sub-key whose numbers are loaded at once."""
_ONLY_IF_MOVED = ("PROBABILITIES", "STRENGTHS", "GRAD_STRENGTHS", "MEANS", "GRAD_SLOPES", "STEP", "GRAD_MOVED")
"""What the tokens' backward is not given where the sub-keys did not move."""


@dataclass(frozen=True)
class KeyForms:
    """All forms for one shape.

    Attributes:
        topk: k.
        score: `idw` or `dot_product`.
        num_subkeys: n of a whole list.
        count: n', sub-keys of a list here.
        half_dim: h.
        groups: G.
    """

    topk: int
    score: str
    num_subkeys: int
    count: int
    half_dim: int
    groups: int

    @property
    def idw(self) -> bool:
        """Whether distances are scored; dot products otherwise."""
        return self.score != "dot_product"

    def most_tiles(self, pairs: int) -> int:
        """Room for the tiles of all sub-keys here, whatever their readers."""
        return pairs // TILE + self.groups * self.count

    def reader_mean(self) -> KernelForm:
        """The mean over the readers of every sub-key."""
        constants = {"HEADS": self.groups // 2, "N": self.num_subkeys, "BLOCK": _READERS}
        return KernelForm(kernels.reader_mean_kernel, {**constants, "ROWS": _NUMBERS // _READERS}, 4)

    def strength(self) -> KernelForm:
        """How strongly every pair moves its sub-key."""
        epsilons = {"EPSILON": IDW_EPSILON, "ENTROPY_EPSILON": ENTROPY_EPSILON}
        return KernelForm(kernels.strength_kernel, {**epsilons, "N": self.num_subkeys, **self._per_token()}, 1)

    def slope_gradient(self) -> KernelForm:
        """What every pair adds to the gradient of its sub-key's slope."""
        return KernelForm(kernels.slope_gradient_kernel, {"EPSILON": IDW_EPSILON, **self._per_token()}, 1)

    def tiles(self, *, totals: bool) -> KernelForm:
        """Sums over tiles of readers; with `totals` of their strengths, too."""
        absent = {} if totals else {"STRENGTHS": None, "PARTIAL_TOTALS": None}
        # How to find a tile's segment and its tokens.
        search = {"STEPS": (self.groups * self.count - 1).bit_length(), "K": self.topk, "IDW": self.idw}
        return KernelForm(kernels.tile_kernel, {**self._per_segment(), **search, "TOTALS": totals, **absent}, 4)

    def finish(self, *, added: bool, totals: bool) -> KernelForm:
        """Sums of tiles, and what they are subtracted from with `added`."""
        absent = ({} if totals else {"PARTIAL_TOTALS": None}) | ({} if added else {"BASE": None})
        return KernelForm(kernels.finish_kernel, {**self._per_segment(), "ADDED": added, "TOTALS": totals, **absent}, 4)

    def strength_gradient(self) -> KernelForm:
        """The gradient of the strengths."""
        return KernelForm(kernels.strength_gradient_kernel, self._per_row(), 4)

    def token_backward(self, *, moved: bool) -> KernelForm:
        """Gradients of queries; `moved` where the sub-keys moved after the piece and something depends on it."""
        constants = {"EPSILON": IDW_EPSILON, "ENTROPY_EPSILON": ENTROPY_EPSILON, "N": self.num_subkeys, "MOVED": moved}
        absent = {} if moved else dict.fromkeys(_ONLY_IF_MOVED)
        return KernelForm(kernels.token_backward_kernel, {**constants, **self._per_row(), **absent}, 4)

    def _per_token(self) -> dict[str, Any]:
        """Constants of the kernels that hold a token's k numbers, for a block of tokens."""
        padded = triton.next_power_of_2(self.topk)
        return {"K": self.topk, "K_PADDED": padded, "ROWS": max(1, 256 // padded), "IDW": self.idw}

    def _per_row(self) -> dict[str, Any]:
        """Constants of the kernels that hold k rows of a token's sub-keys."""
        padded = triton.next_power_of_2(self.topk)
        block = min(triton.next_power_of_2(self.half_dim), _NUMBERS // padded)
        return {
            "COUNT": self.count,
            "H": self.half_dim,
            "BLOCK": block,
            "K": self.topk,
            "K_PADDED": padded,
            "ROWS": _NUMBERS // (padded * block),
            "IDW": self.idw,
        }

    def _per_segment(self) -> dict[str, Any]:
        """Constants of the kernels that sum the readers of a sub-key."""
        block = min(triton.next_power_of_2(self.half_dim), _NUMBERS // _LOADS)
        return {
            "COUNT": self.count,
            "N": self.num_subkeys,
            "SEGMENTS": self.groups * self.count,
            "H": self.half_dim,
            "BLOCK": block,
            "TILE": TILE,
            "ROWS": _NUMBERS // (_LOADS * block),
            "LOADS": _LOADS,
        }
