"""Offloading moves what layers keep for backward to the host and changes nothing else, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
from megatron_fwpkm.models import offload
from megatron_fwpkm.models.offload import offloading
from tests.models.micro_batches import MEMORIES, train
from tests.quick_cases import product_cases

_MEMORIES: dict[str, dict[str, Any]] = {
    **MEMORIES,
    "grouped queries in windows": {"layer_numbers": (1, 4), "model": {"layer_pattern": "swa:5"}},
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "two layers": {"cpu_offloading_num_layers": 2},
    "all layers": {"cpu_offloading_num_layers": 4},
    "with recompute": {
        "cpu_offloading_num_layers": 4,
        "recompute_granularity": "selective",
        "recompute_modules": ("core_attn", "mlp"),
    },
}


class Packed:
    """Counts what is moved to the host, and where it comes from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tensors = self.elements = self.in_memories = 0
        self._inside = False
        to_host, forward = offload._to_host, FastWeightMemoryLayer.forward

        def counted(tensor: torch.Tensor) -> Any:
            self.tensors += 1
            self.elements += tensor.numel()
            self.in_memories += self._inside
            return to_host(tensor)

        def watched(memory: FastWeightMemoryLayer, *args: Any) -> torch.Tensor:
            self._inside = True
            try:
                return forward(memory, *args)
            finally:
                self._inside = False

        monkeypatch.setattr(offload, "_to_host", counted)
        monkeypatch.setattr(FastWeightMemoryLayer, "forward", watched)


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Any]]:
    """What training without offload gives."""
    return {name: train(memory, {}) for name, memory in _MEMORIES.items()}


@pytest.mark.parametrize(
    ("setting", "memory"),
    product_cases(
        _SETTINGS,
        _MEMORIES,
        quick=lambda setting, memory: list(_SETTINGS).index(setting) == list(_MEMORIES).index(memory) % len(_SETTINGS),
    ),
)
def test_offload_is_exact_and_leaves_memories_alone(
    plain: Any, memory: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = Packed(monkeypatch)
    expected, offloaded = plain[memory], train(_MEMORIES[memory], _SETTINGS[setting])
    assert packed.tensors > 0 and packed.in_memories == 0
    assert offloaded["losses"] == expected["losses"]
    for name, tensor in expected["tensors"].items():
        assert torch.equal(offloaded["tensors"][name], tensor), name
    assert offloaded["calls"] == expected["calls"] == 4
    assert offloaded["kept"] < expected["kept"]


def test_without_it_nothing_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Packed(monkeypatch)
    train(MEMORIES["carried"], {})
    assert packed.tensors == 0


@pytest.mark.parametrize(
    ("make", "copied"),
    [
        (lambda x: x, 24),
        (lambda x: x.t(), 24),
        (lambda x: x[:, ::2], 12),
        (lambda x: x[:, :1].expand(4, 50), 4),
        (lambda x: x[:, None, ::2].expand(4, 5, 3), 12),
        (lambda x: x.flatten().unfold(0, 12, 4), 24),  # overlapping windows
        (lambda x: x[:0], 0),
        (lambda x: x[2, 3], 1),
    ],
)
def test_a_view_comes_back_as_it_was(make: Any, copied: int) -> None:
    saved = make(torch.arange(24.0).view(4, 6))
    on_host = offload._to_host(saved)
    assert on_host.copy.numel() == copied and (not copied or on_host.copy.data_ptr() != saved.data_ptr())
    back = offload._from_host(on_host)
    assert torch.equal(back, saved) and back.stride() == saved.stride() and back.dtype == saved.dtype


def test_parameters_stay_and_copies_are_copies() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 3))
    x = torch.randn(3, 3, requires_grad=True)
    with offloading([weight]):
        y = (x * weight.t()).exp()
    moved = [saved for saved in _saved_by(y) if saved.untyped_storage().data_ptr() != weight.data_ptr()]
    assert len(moved) == 2 and all(tensor.data_ptr() not in (x.data_ptr(), y.data_ptr()) for tensor in moved)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y * weight.t()).detach(), rtol=0, atol=0)


def _saved_by(y: torch.Tensor) -> list[torch.Tensor]:
    """What the last two steps of the graph bring back for backward."""
    exp = y.grad_fn
    assert exp is not None
    product = exp.next_functions[0][0]
    return [exp._saved_result, product._saved_self, product._saved_other]  # type: ignore[attr-defined, union-attr]
