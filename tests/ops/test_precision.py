"""Float32 products are exact inside the memory, and every switch of the user is as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from megatron_fwpkm.ops.precision import full_precision

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
backends = torch.backends
SWITCHES = {
    "matmul": backends.cuda.matmul, "cudnn": backends.cudnn, "mkldnn matmul": backends.mkldnn.matmul,
    "mkldnn": backends.mkldnn, "all": backends,
}  # fmt: skip


def everything() -> list[str]:
    """What all switches say, the old ones too."""

    def read(get: Callable[[], object]) -> str:
        try:
            return str(get())
        except RuntimeError:
            return "contradiction"

    old = [read(torch.get_float32_matmul_precision), read(lambda: backends.cuda.matmul.allow_tf32)]
    return [*old, *(switch.fp32_precision for switch in SWITCHES.values())]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """A test leaves no switch behind."""
    yield
    torch.set_float32_matmul_precision("highest")
    for switch in SWITCHES.values():
        switch.fp32_precision = "none"


def set_both(name: str, other: str) -> None:
    """Two of the new switches."""
    SWITCHES[name].fp32_precision = "tf32"
    SWITCHES[other].fp32_precision = "ieee"


USERS = {
    "nobody": lambda: None,
    "old, high": lambda: torch.set_float32_matmul_precision("high"),
    "old, medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old, allow_tf32": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    "new, matmul": lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
    "new, of all of CUDA": lambda: setattr(backends.cudnn, "fp32_precision", "tf32"),
    "new, everywhere": lambda: setattr(backends, "fp32_precision", "tf32"),
    "new, everywhere but in products": lambda: set_both("all", "matmul"),
    "new, in products only": lambda: set_both("matmul", "all"),
    "new, bfloat16 on the CPU": lambda: setattr(backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "both, old first": lambda: (torch.set_float32_matmul_precision("high"), set_both("mkldnn matmul", "cudnn")),
}


@pytest.mark.parametrize("device", [CUDA, CPU], ids=str)
@pytest.mark.parametrize("user", USERS)
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_products_are_exact_inside_and_switches_stay(user: str, device: torch.device) -> None:
    USERS[user]()
    before = everything()
    with pytest.raises(KeyError, match="inside"), full_precision(device):
        own = SWITCHES["matmul" if device is CUDA else "mkldnn matmul"]
        assert own.fp32_precision in ("ieee", "none")
        inside = everything()
        if "contradiction" not in before:
            assert "contradiction" not in inside, "code that asks the old switches inside would raise"
        raise KeyError("inside")
    assert everything() == before


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize(("above", "follows"), [("all", ["cudnn", "matmul"]), ("cudnn", ["matmul"])])
def test_what_was_inherited_still_is(above: str, follows: list[str]) -> None:
    SWITCHES[above].fp32_precision = "tf32"
    with full_precision(CUDA):
        assert SWITCHES["matmul"].fp32_precision == "ieee"
    assert [SWITCHES[name].fp32_precision for name in follows] == ["tf32"] * len(follows)
    SWITCHES[above].fp32_precision = "none"
    assert [SWITCHES[name].fp32_precision for name in follows] == ["none"] * len(follows), "they were pinned"


def test_autocast_is_off_inside() -> None:
    product = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (product @ product).dtype == torch.bfloat16
        with full_precision(CPU):
            assert (product @ product).dtype == torch.float32
