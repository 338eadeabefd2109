"""The kernels of the sub-keys as the compile gate compiles them.

The paper's shape, one with top 32, and short lists, of which a program takes several tokens or sub-keys.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ...kernel_forms import KernelVariant, variant_of
from ...product_key.triton.select import select_form, slots_form
from .key_forms import KeyForms

_TYPES = {"INDICES": "*i32", "POSITIONS": "*i32", "SLOTS": "*i64", "ORDER": "*i64", "STARTS": "*i64"}


def _variants(topk: int, score: str, num_subkeys: int, half_dim: int, heads: int) -> tuple[KernelVariant, ...]:
    """All kernels as they are launched for whole lists."""
    forms = KeyForms(topk, score, num_subkeys, num_subkeys, half_dim, 2 * heads)
    named = {
        "select": select_form(num_subkeys, half_dim, topk, score, torch.float32),
        "slots": slots_form(num_subkeys, topk, score, True),
        "reader mean": forms.reader_mean(),
        "strength": forms.strength(),
        "slope gradient": forms.slope_gradient(),
        "tiles of a move": forms.tiles(totals=False),
        "tiles of a gradient": forms.tiles(totals=True),
        "end of a move": forms.finish(added=True, totals=False),
        "end of a gradient": forms.finish(added=True, totals=True),
        "strength gradient": forms.strength_gradient(),
        "token backward": forms.token_backward(moved=True),
        "token backward, unmoved": forms.token_backward(moved=False),
    }
    label = f"k={topk} n={num_subkeys} h={half_dim}"
    return tuple(variant_of(f"{name} {label}", form, _TYPES) for name, form in named.items())


KERNEL_VARIANTS = (
    *_variants(8, "idw", 512, 256, heads=1),
    *_variants(32, "idw", 1024, 128, heads=4),
    *(replace(variant, slow=True) for variant in _variants(8, "idw", 4096, 256, heads=1)[:1]),
    *(replace(variant, slow=True) for variant in _variants(4, "dot_product", 64, 32, heads=2)),
)
