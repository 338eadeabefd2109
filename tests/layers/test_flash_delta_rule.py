"""How flash-linear-attention is called: a stand-in with its signature, and its own kernels where they run."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.layers.flash_delta_rule import flash_delta_rule
from megatron_fwpkm.libraries.probes import FLASH_LINEAR_ATTENTION, Environment, fused_libraries, installed, is_there
from megatron_fwpkm.ops.gated_delta_net.chunked import gated_delta_rule
from tests.ops.gated_delta_net.cases import RuleCase, rule_case


def chunk_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """What the library's documentation says, by our own rule, text after text."""
    assert scale is None and output_final_state and not use_qk_l2norm_in_kernel
    if cu_seqlens is None:
        return gated_delta_rule(q, k, v, g, beta, initial_state)
    assert q.shape[0] == 1 and (initial_state is None or len(initial_state) == len(cu_seqlens) - 1)
    outputs, states = [], []
    for number, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        before = None if initial_state is None else initial_state[number : number + 1]
        output, state = gated_delta_rule(*(x[:, start:stop] for x in (q, k, v, g, beta)), before)
        outputs.append(output)
        states.append(state)
    return torch.cat(outputs, 1), torch.cat(states)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library's module, for this test."""
    name = f"{FLASH_LINEAR_ATTENTION}.ops.gated_delta_rule"
    module = types.ModuleType(name)
    module.chunk_gated_delta_rule = chunk_gated_delta_rule  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    yield


def both(case: RuleCase) -> list[tuple[Tensor, Tensor]]:
    return [flash_delta_rule(*case.inputs()), gated_delta_rule(*case.inputs())]


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_documents_and_states_reach_the_library(stand_in: None, with_state: bool, documents: bool) -> None:
    for seed in range(4):
        case = rule_case(seed, tokens=40, batch=3, repeats=2, with_state=with_state, documents=documents)
        (outputs, state), (expected, after) = both(case)
        torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state, after, rtol=1e-12, atol=1e-12)


def test_a_machine_without_a_gpu_does_not_import_it() -> None:
    seen = []

    def import_module(name: str) -> types.ModuleType:
        seen.append(name)
        raise ModuleNotFoundError(name=name)

    environment = Environment(
        import_module=import_module, is_there=lambda name: name == FLASH_LINEAR_ATTENTION, version=lambda name: "0.6.0"
    )
    found = fused_libraries(environment)[FLASH_LINEAR_ATTENTION]
    assert found.status == "ok" and found.version == "0.6.0" and "there is no GPU" in found.note
    assert not [name for name in seen if name.startswith(FLASH_LINEAR_ATTENTION)]


@pytest.mark.gpu
@pytest.mark.parametrize("documents", [False, True])
def test_the_librarys_kernels_compute_the_rule(documents: bool) -> None:
    """In bfloat16, as it is used; gradients, too."""
    if not is_there(FLASH_LINEAR_ATTENTION) or not installed()[FLASH_LINEAR_ATTENTION].ok:
        pytest.skip("flash-linear-attention is not installed")
    case = rule_case(
        tokens=300, batch=2, repeats=2, key_width=64, value_width=64, documents=documents, with_state=False, decay=0.1
    )
    results = []
    for rule, dtype in ((flash_delta_rule, torch.bfloat16), (gated_delta_rule, torch.float64)):
        leaves = [x.bfloat16().to("cuda", dtype).requires_grad_() for x in case.inputs()[:5]]  # type: ignore[union-attr]
        starts = None if case.starts is None else case.starts.cuda()
        outputs, _ = rule(*leaves, None, starts)
        outputs.double().square().sum().backward()
        results.append([outputs, *(leaf.grad for leaf in leaves)])
    for ours, exact in zip(*results, strict=True):
        assert (ours.double() - exact).norm() <= 0.02 * exact.norm()
