"""A kernel that gives other bits for equal inputs is found, with its form; the others are hashed once per repeat."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import memory, repeated_launches
from benchmarks.repeated_launches import Repeats, hash_of, repeated
from megatron_fwpkm.ops.kernel_forms import KernelForm


class AddsToTable:
    """Stands for a function under `@triton.jit` that adds `step` to a table, and `error` more at every launch."""

    arg_names = ("TABLE", "step", "D")
    __name__ = "adds_kernel"

    def __init__(self, error: float) -> None:
        self.error, self.launches = error, 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, TABLE: torch.Tensor, step: int, **_: Any) -> None:
        """Write in place."""
        TABLE += step + self.error * self.launches
        self.launches += 1


@pytest.mark.parametrize("error", [0.0, 2.0**-20])
def test_unequal_bits_are_found(error: float) -> None:
    repeats, table, kernel = Repeats(5), torch.ones(3), AddsToTable(error)
    with repeated(repeats):
        for step in (1, 2):
            KernelForm(kernel, {"D": 3}, 1).launch((1,), {"TABLE": table, "step": step})
    assert kernel.launches == 6, "the second launch of a form is not repeated"
    assert list(repeats.hashes) == ['adds_kernel {"D": 3} float32']
    assert bool(repeats.unequal()) == bool(error)
    if not error:
        assert table.tolist() == [4.0] * 3, "every repeat begins with what was given"


def test_the_hash_sees_every_bit_and_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_launches, "_BLOCK", 4)
    data = torch.arange(11, dtype=torch.bfloat16)
    others = [data.clone() for _ in range(11)]
    for place, other in enumerate(others):
        other.view(torch.int16)[place] ^= 1
    swapped = data.flip(0)
    assert len({hash_of(tensor) for tensor in (data, swapped, *others)}) == 13
    assert hash_of(data) == hash_of(data.clone())
    assert hash_of(torch.tensor(1.0)) != hash_of(torch.tensor(2.0))


def test_the_memorys_launches_are_repeated(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    launched: list[str] = []
    monkeypatch.setattr(KernelForm, "launch", lambda form, grid, *_: launched.append(form.kernel.__name__))
    monkeypatch.setattr(memory, "prepare", lambda case: (_one_launch, {}))
    flags = ["--device", "cpu", "--size", "rehearsal", "--repeats", "3", "--output", str(tmp_path)]
    assert repeated_launches.main(flags) == 0
    assert launched == ["adds_kernel"] * 4, "three for the first mode, one for the second"
    assert "1 forms, 3 launches each, 0 with unequal bits" in capsys.readouterr().out
    assert (tmp_path / "repeated_launches_rehearsal.json").is_file()


def _one_launch() -> None:
    KernelForm(AddsToTable(0.0), {"D": 3}, 1).launch((1,), {"TABLE": torch.ones(3), "step": 1})
