"""A launch runs on the device of its tensors, whichever is current; tensors begin where kernels expect it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_fwpkm.ops.kernel_forms import KernelForm, aligned, cdiv, next_power_of_2


class OnSecond(torch.Tensor):
    """A tensor that says it is on the second GPU."""

    def get_device(self) -> int:
        return 1


class Kernel:
    """Stands for a function under `@triton.jit`: notes the device on which it is launched."""

    arg_names = ("rows", "ABSENT", "TABLE", "D")

    def __init__(self) -> None:
        self.launched: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda **arguments: self.launched.append((torch.cuda.current_device(), grid, arguments["rows"]))


@pytest.fixture()
def entered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two pretended GPUs, of which the first is current; returns the devices that were entered."""
    entered: list[int] = []

    @contextmanager
    def device(index: int) -> Iterator[None]:
        entered.append(index)
        current.append(index)
        yield
        current.pop()

    current = [0]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    return entered


def launch(kernel: Kernel, table: torch.Tensor) -> None:
    KernelForm(kernel, {"D": 4, "ABSENT": None}, num_warps=1).launch((2,), {"rows": 3}, {"TABLE": table})


def test_a_kernel_runs_on_the_device_of_its_tensors(entered: list[int]) -> None:
    kernel = Kernel()
    launch(kernel, torch.zeros(4).as_subclass(OnSecond))
    assert kernel.launched == [(1, (2,), 3)] and entered == [1]
    assert torch.cuda.current_device() == 0


def test_the_current_device_is_not_entered_again(entered: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    launch(kernel, torch.zeros(4).as_subclass(OnSecond))
    launch(kernel, torch.zeros(4))  # the interpreter, on the CPU
    assert len(kernel.launched) == 2 and entered == []


@pytest.mark.parametrize(("offset", "columns", "copied"), [(0, 8, False), (4, 8, False), (1, 8, True), (0, 6, True)])
def test_what_is_not_aligned_is_copied(offset: int, columns: int, copied: bool) -> None:
    storage = torch.arange(40.0)
    tensor = storage[offset:][:32].view(4, 8)[:, :columns]
    found = aligned(tensor)
    assert torch.equal(found, tensor) and found.is_contiguous() and found.data_ptr() % 16 == 0
    assert (found.data_ptr() != tensor.data_ptr()) is copied


class CompilingKernel:
    """Stands for a function under `@triton.jit` that gives what it has compiled: notes who is asked to launch."""

    arg_names = ("rows", "flag", "TABLE", "D")
    params = tuple(SimpleNamespace(name=name, do_not_specialize=name == "rows") for name in arg_names)

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def compile_and_launch(**arguments: Any) -> dict[tuple[int, ...], Any]:
            self.asked.append("Triton")
            return {(2, 1, 1): lambda *every: self.asked.append(str([x for x in every if not torch.is_tensor(x)]))}

        return compile_and_launch


def test_what_was_compiled_is_launched_again_for_arguments_of_the_same_kind() -> None:
    kernel, table = CompilingKernel(), torch.zeros(9)
    form = KernelForm(kernel, {"D": 4}, num_warps=1)
    for rows, flag, given in (
        (3, 1, table), (5, 1, table), (2**40, 1, table), (5, 2, table), (5, 1, table.double()), (5, 1, table[1:]),
        (6, 1, table),
    ):  # fmt: skip
        form.launch((2,), {"rows": rows, "flag": flag, "TABLE": given})
    assert kernel.asked == ["Triton", "[5, 1, 4]", "Triton", "Triton", "Triton", "Triton", "[6, 1, 4]"]


@pytest.mark.parametrize(("number", "power"), [(1, 1), (2, 2), (3, 4), (512, 512), (513, 1024)])
def test_whole_numbers(number: int, power: int) -> None:
    assert next_power_of_2(number) == power and cdiv(number, 2) == (number + 1) // 2
