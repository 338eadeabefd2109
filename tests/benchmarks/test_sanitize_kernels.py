"""What the sanitizer finds, cannot check or misses is told for every form; triton-viz itself is stood in for."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import sanitize_kernels
from benchmarks.repeated_launches import FirstLaunch
from benchmarks.sanitize_kernels import main
from megatron_fwpkm.ops.kernel_forms import KernelForm


class Kernel:
    """Stands for a function under `@triton.jit` that does nothing."""

    arg_names = ("TABLE", "D")

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **_: None


def places(launch: FirstLaunch, arguments: dict[str, Any]) -> tuple[str, ...]:
    """Stands for the sanitizer, which knows what is wrong by the kernel's name."""
    kind = launch.form.kernel.__name__.removesuffix("_kernel")
    if kind == "planted":
        return ("planted.py:1",)
    if kind == "difficult":
        raise TypeError("no reductions\nat all")
    if kind == "ending":
        os._exit(7)
    if kind == "endless":
        threading.Event().wait()
    cut = arguments["TABLE"].numel() < 3
    return ("wrong.py:5",) if kind == "wrong" or (kind == "right" and cut) else ()


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sanitizer that imports."""
    monkeypatch.setitem(sys.modules, "triton_viz", sys)
    monkeypatch.setitem(sys.modules, "triton_viz.clients", sys)
    monkeypatch.setattr(sanitize_kernels, "find_places", places)


def run(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> int:
    """The exit status with launches of such kernels, the last of them in two forms."""

    def call() -> None:
        for kind, width in [*((kind, 3) for kind in kinds), (kinds[-1], 4), (kinds[-1], 4)]:
            KernelForm(Kernel(f"{kind}_kernel"), {"D": width}, 1).launch((1,), {"TABLE": torch.ones(3)})

    monkeypatch.setattr(sanitize_kernels, "find_in_child", sanitize_kernels.find)  # a fork takes long
    monkeypatch.setattr(sanitize_kernels, "calls", lambda: [call])
    return main([])


def test_every_form_has_its_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "right", "blind", "difficult") == 0
    assert capsys.readouterr().out.splitlines() == [
        "a load out of bounds that is there is found: OUT OF BOUNDS at planted.py:1",
        "kernel            forms  result",
        "blind_kernel          1  cannot be checked: nothing is found with its tensors cut short, either",
        "difficult_kernel      2  cannot be checked: TypeError: no reductions",
        "right_kernel          1  checked",
        "1 of 4 forms were checked, of 1 of 3 kernels",
    ]


def test_what_is_out_of_bounds_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "right", "wrong") == 1
    found = capsys.readouterr().out
    assert "wrong_kernel      2  OUT OF BOUNDS at wrong.py:5\n" in found
    assert 'OUT OF BOUNDS: wrong_kernel {"D": 4} float32\n' in found and "3 of 3 forms were checked" in found


def test_a_blind_sanitizer_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sanitize_kernels, "find_places", lambda *_: ())
    assert run(monkeypatch, "right") == 1
    assert "does not find an out-of-bounds load that is there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("wrong", "OUT OF BOUNDS at wrong.py:5"),
        ("ending", "cannot be checked: the sanitizer ends with exit code 7"),
        ("endless", "cannot be checked: takes longer than 0.3 s"),
    ],
)
def test_a_check_has_a_process_of_its_own(kind: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "endless":
        monkeypatch.setattr(sanitize_kernels, "_SECONDS", 0.3)
    launch = FirstLaunch(kind, KernelForm(Kernel(f"{kind}_kernel"), {}, 1), (1,), {"TABLE": torch.ones(3)}, print)
    assert str(sanitize_kernels.check(launch)) == expected


def test_without_the_sanitizer_the_target_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "triton_viz", None)
    monkeypatch.setitem(sys.modules, "triton_viz.clients", None)
    with pytest.raises(SystemExit):
        main([])
    assert "run make sanitize-kernels, which installs it" in capsys.readouterr().err
