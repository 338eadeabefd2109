"""The gates of a model's memories while it reads: how much of each memory's output is what was retrieved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...hf.memory_block import BlockAroundMemory
from ..block_losses import sums_by_block

_LAYER = re.compile(r"layers\.(\d+)\.")
Gates = dict[int, list[Tensor]]
"""By layer index from 0, the gates [T] of every call."""


@contextmanager
def collect_gates(model: Any) -> Iterator[Gates]:
    """Collect the gates of all memories of a model that reads one sequence, within the context.

    A gate of 1 passes on what was retrieved, one of 0 the token's own value. Memories without a gate, and models of
    other kinds, have none.
    """
    found: Gates = {}
    handles = []
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        layer = _LAYER.search(name)
        if isinstance(module, BlockAroundMemory) and module.gate_proj is not None and layer is not None:
            calls = found.setdefault(int(layer[1]), [])
            handles.append(module.gate_proj.register_forward_hook(_keeping(calls)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def gate_sums(found: Gates, block: int) -> dict[int, tuple[float, ...]]:
    """By layer, the sums of the gates of a document's tokens by blocks of positions.

    Position i has the gate of token i - 1, from which token i is predicted: there are as many as losses.
    """
    return {layer: sums_by_block(_all(calls)[:-1], block)[0] for layer, calls in found.items()}


def _keeping(calls: list[Tensor]) -> Any:
    def _hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls.append(torch.sigmoid(output.detach().double())[0, :, 0].cpu())

    return _hook


def _all(calls: list[Tensor]) -> np.ndarray:
    return torch.cat(calls).numpy()
