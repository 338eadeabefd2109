"""The forms in which the kernels of the sub-keys are launched, for the compile gate.

The paper's shape, one with top 32, and short lists, of which a program takes several tokens or sub-keys.

The constants of each launch are those that `key_steps.py` and `product_key/triton/select.py` pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ...kernel_forms import KernelVariant
from ...product_key.reference import ENTROPY_EPSILON, IDW_EPSILON
from ...product_key.triton import select_kernels as choice
from ...product_key.triton.select import select_constants, slots_constants
from . import key_kernels as keys
from .key_steps import KeyShape, launch, reader_sum_constants

_TYPES = {"INDICES": "*i32", "POSITIONS": "*i32", "SLOTS": "*i64", "ORDER": "*i64", "STARTS": "*i64"}
_EPSILONS = {"EPSILON": IDW_EPSILON, "ENTROPY_EPSILON": ENTROPY_EPSILON}


def _variant(name: str, kernel: Any, warps: int, *constants: Mapping[str, Any], **more: Any) -> KernelVariant:
    known: dict[str, Any] = _EPSILONS | more
    for some in constants:
        known |= some
    names = kernel.arg_names
    used = {argument: value for argument, value in known.items() if argument in names}
    signature = {
        argument: _TYPES.get(argument, "*fp32") if argument.isupper() else "i32"
        for argument in names
        if argument not in used
    }
    return KernelVariant(name, kernel, signature, used, launch(warps))


def _variants(shape: KeyShape, heads: int) -> tuple[KernelVariant, ...]:
    """All kernels as they are launched for whole lists."""
    label = f"k={shape.topk} n={shape.count} h={shape.half_dim}"
    row, token, segment = shape.per_row(), shape.per_token(), shape.per_segment(2 * heads)
    tile = segment | shape.per_tile(2 * heads)
    lists = shape.num_subkeys, shape.half_dim, shape.topk, shape.score, torch.float32
    slots = slots_constants(shape.num_subkeys, shape.topk, shape.score)
    means = {"N": shape.num_subkeys}
    still = {"PULLS": None, "PARTIAL_TOTALS": None, "TOTALS": False}
    absent = ("PROBABILITIES", "PULLS", "GRAD_PULLS", "MEANS", "GRAD_SLOPES", "STEP", "GRAD_MOVED")
    return (
        _variant(f"select {label}", choice.select_kernel, 1, select_constants(*lists)),
        _variant(f"slots {label}", choice.slots_kernel, 1, slots, STATISTICS=True),
        _variant(f"reader sum {label}", keys.reader_sum_kernel, 4, reader_sum_constants(shape.num_subkeys, heads)),
        _variant(f"pull {label}", keys.pull_kernel, 1, token, means),
        _variant(f"spread {label}", keys.spread_kernel, 1, token),
        _variant(f"tiles of a move {label}", keys.tile_kernel, 4, tile, still),
        _variant(f"tiles of a gradient {label}", keys.tile_kernel, 4, tile, TOTALS=True),
        _variant(f"end of a move {label}", keys.finish_kernel, 4, segment, still, ADDED=True),
        _variant(f"end of a gradient {label}", keys.finish_kernel, 4, segment, TOTALS=True, ADDED=True),
        _variant(f"pull gradient {label}", keys.pull_gradient_kernel, 4, row),
        _variant(f"token backward {label}", keys.token_backward_kernel, 4, row, means, MOVED=True),
        _variant(
            f"token backward, unmoved {label}",
            *(keys.token_backward_kernel, 4, row, means, dict.fromkeys(absent)),
            MOVED=False,
        ),
    )


_LONGEST_LISTS = KeyShape(8, "idw", 4096, 0, 4096, 256)
_SHORT_LISTS = KeyShape(4, "dot_product", 64, 0, 64, 32)

KERNEL_VARIANTS = (
    *_variants(KeyShape(8, "idw", 512, 0, 512, 256), heads=1),
    *_variants(KeyShape(32, "idw", 1024, 0, 1024, 128), heads=4),
    *(replace(variant, slow=True) for variant in _variants(_LONGEST_LISTS, heads=1)[:1]),
    *(replace(variant, slow=True) for variant in _variants(_SHORT_LISTS, heads=2)),
)
