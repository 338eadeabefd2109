"""How often the host waits for a device: never in Triton; in torch for doubts of the selection and for plans."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_fwpkm.ops.product_key.selection import KeptSubKeys, select_slots
from tests.ops.cases import gradients, make_case
from tests.ops.host_waits import host_waits

PIECES = 3


@pytest.mark.parametrize("options", [{}, {"addressing_weight": 0.0}, {"inner_lr": 0.0}], ids=str)
@pytest.mark.parametrize("undo_log", ["fp32", "bf16", "recompute"])
def test_sparse_waits_for_its_selection_and_for_its_plans(options: dict[str, Any], undo_log: str) -> None:
    """Of two checks of a selection, the second is left out on a GPU (see below)."""
    case = make_case(3, tokens=8 * PIECES, masked=True, dtype=torch.float32, undo_log=undo_log, **options)
    with host_waits() as found:
        gradients(case, implementation="sparse")
    # Once for the slots of every piece, once for those of a call, and with `recompute` in forward for those, too. The
    # list of backward, of what several pieces read, is not seen.
    assert found.pop("tolist") == 1
    expected = 2 * PIECES + 1 + (undo_log == "recompute")
    assert found == {"local_scalar_dense": expected}, "and nothing whose shape depends on data"


def test_triton_never_waits() -> None:
    small = {"batch": 1, "heads": 1, "topk": 2, "chunk_size": 4}
    case = make_case(3, tokens=4 * PIECES, masked=True, dtype=torch.float32, **small)
    with host_waits() as found:
        gradients(case, implementation="triton")
    assert not found


def test_beside_a_cpu_slots_are_chosen_without_a_look() -> None:
    """Tensors without data raise when they are looked at."""
    indices = torch.empty(4, 5, 4, dtype=torch.int64, device="meta")
    choice = select_slots(KeptSubKeys(indices, torch.empty(4, 5, 4, device="meta")), 9, "idw")
    assert choice.slots.shape == (5, 2, 4)
