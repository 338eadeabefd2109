"""Which implementation a call gets, and what is said where Triton cannot run it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from megatron_fwpkm.ops import FastWeightState, MemoryOptions
from megatron_fwpkm.ops.fast_weight_memory import implementation_choice
from megatron_fwpkm.ops.fast_weight_memory.implementation_choice import choose_implementation
from tests.ops.cases import make_case

OBSTACLES = [
    ({"value_dim": 6}, {}, r"value_dim=6 \(columns of one process\) is not divisible by 4: pad it"),
    ({"num_subkeys": 40}, {"topk": 33}, "topk=33 is more than 32: lower it"),
    ({"num_subkeys": 40, "heads": 5}, {"topk": 26}, r"heads \* topk = 5 \* 26 is more than 128: lower one of them"),
    ({"num_subkeys": 4097}, {}, "num_subkeys=4097 is more than 4096: lower it"),
]


def options_of(topk: int = 2, implementation: str = "auto") -> MemoryOptions:
    """Options of a call that Triton can run."""
    return MemoryOptions(topk, chunk_size=8, implementation=implementation)


def forget() -> None:
    """Let everything be said anew, and Triton be looked for again."""
    implementation_choice._warn_once.cache_clear()
    implementation_choice._triton_failure.cache_clear()


class OnCuda(torch.Tensor):
    """A table that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def state_of(num_subkeys: int = 5, value_dim: int = 4, heads: int = 1, on_cuda: bool = False) -> FastWeightState:
    """Tables of these sizes, without memory behind them."""
    values = torch.empty(1, 1).expand(num_subkeys**2, value_dim)
    values = values if num_subkeys > 100 else values.contiguous()
    return FastWeightState(torch.empty(heads, 2, num_subkeys, 3), values.as_subclass(OnCuda) if on_cuda else values)


@pytest.mark.parametrize(("shapes", "options", "message"), OBSTACLES)
def test_what_triton_cannot_run_is_refused(shapes: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"implementation='triton' does not support this: {message}.*; or use"):
        choose_implementation(state_of(**shapes), options_of(implementation="triton", **options))


@pytest.mark.parametrize(("shapes", "options", "message"), OBSTACLES)
def test_auto_says_once_why_it_falls_back(shapes: Any, options: Any, message: str) -> None:
    forget()
    state = state_of(on_cuda=True, **shapes)
    with pytest.warns(UserWarning, match=f"runs as implementation='sparse'.*{message}"):
        assert choose_implementation(state, options_of(**options)) == "sparse"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_implementation(state, options_of(**options)) == "sparse"


def test_auto_is_triton_on_cuda_and_sparse_elsewhere() -> None:
    assert choose_implementation(state_of(on_cuda=True), options_of()) == "triton"
    assert choose_implementation(state_of(), options_of()) == "sparse"


def test_tables_that_are_not_contiguous_are_refused() -> None:
    state = FastWeightState(torch.empty(1, 2, 5, 3), torch.empty(25, 8)[:, :4])
    with pytest.raises(ValueError, match=r"values are not contiguous \(strides \(8, 1\)\): pass values.contiguous"):
        choose_implementation(state, options_of(implementation="triton"))


def test_tables_that_begin_between_multiples_of_16_bytes_are_refused() -> None:
    state = FastWeightState(torch.empty(1, 2, 5, 3), torch.empty(102)[2:].view(25, 4))
    with pytest.raises(ValueError, match="values begin 8 bytes into their storage, no multiple of 16: pass values.cl"):
        choose_implementation(state, options_of(implementation="triton"))
    aligned = FastWeightState(state.sub_keys, torch.empty(104)[4:].view(25, 4))
    assert choose_implementation(aligned, options_of(implementation="triton")) == "triton"


def test_without_a_gpu_kernels_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementation_choice, "_is_interpreted", lambda: False)
    with pytest.raises(ValueError, match="the tables are on cpu: move them to a CUDA device, or set TRITON_"):
        make_case().run(implementation="triton")


def test_without_triton_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(implementation_choice, "import_module", fail)
    forget()
    try:
        with pytest.raises(ValueError, match=r"triton does not import \(ModuleNotFoundError: No module named"):
            make_case().run(implementation="triton")
    finally:
        forget()
