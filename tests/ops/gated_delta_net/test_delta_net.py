"""The whole net between the projections: convolution, rates, rule, norm; documents, padding, any cut of a text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_fwpkm.ops.gated_delta_net.delta_net import DeltaNetState, gated_delta_net
from megatron_fwpkm.ops.gated_delta_net.reference import convolution_by_token, delta_rule_by_token
from megatron_fwpkm.ops.gated_delta_net.short_convolution import short_convolution

from .cases import NetCase, net_case
from .test_delta_rule import assert_close


def by_token(case: NetCase, starts: Tensor | None = None) -> Tensor:
    """The net as its equations say, of a text from its beginning."""
    heads, repeats = case.qkvz.shape[2], case.ba.shape[-1] // 2
    parts = case.qkvz.split([5, 5, 3 * repeats, 3 * repeats], -1)
    taps = case.weights.convolution.split([5, 5, 3 * repeats], 1)
    mixed = [convolution_by_token(part.flatten(2), weight.flatten(0, 1), starts=starts)
             for part, weight in zip(parts, taps, strict=False)]  # fmt: skip
    q, k = (x.unflatten(-1, (heads, 5)) for x in mixed[:2])
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    b, a = (case.ba[..., half].flatten(2) for half in (slice(repeats), slice(repeats, None)))
    decays = -case.weights.A_log.exp() * (1 + (a + case.weights.dt_bias).exp()).log()
    values, gate = (x.flatten(2).unflatten(-1, (heads * repeats, 3)) for x in (mixed[2], parts[3]))
    outputs, _ = delta_rule_by_token(q, k, values, decays, 1 / (1 + (-b).exp()), starts=starts)
    deviation = (outputs.square().mean(-1, keepdim=True) + case.eps).sqrt()
    return (outputs / deviation * case.weights.norm * gate * torch.sigmoid(gate)).flatten(2)


def run(case: NetCase, start: int = 0, stop: int | None = None, state: DeltaNetState | None = None, **options: Tensor):
    """The net over some of the tokens."""
    part = slice(start, stop)
    return gated_delta_net(
        case.qkvz[:, part], case.ba[:, part], case.weights, case.key_width, case.eps, state, **options
    )


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("documents", [False, True])
def test_equal_to_the_equations_forward_and_backward(repeats: int, documents: bool) -> None:
    case = net_case(tokens=70, repeats=repeats)
    starts = torch.rand(2, 70, generator=torch.Generator().manual_seed(3)) < 0.15 if documents else None
    results = []
    for net in (lambda case: run(case, starts=starts)[0], lambda case: by_token(case, starts)):
        weights = type(case.weights)(*(x.clone().requires_grad_() for x in case.weights))
        leaves = NetCase(case.qkvz.clone().requires_grad_(), case.ba.clone().requires_grad_(), weights)
        output = net(leaves)
        (output * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)).sum().backward()
        results.append([output, *(x.grad for x in (leaves.qkvz, leaves.ba, *weights))])
    assert_close(*results, 1e-12)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 30), max_size=5), st.integers(2, 5), st.booleans())
def test_any_cut_gives_the_same(seed: int, cuts: list[int], taps: int, documents: bool) -> None:
    case = net_case(seed, tokens=30, taps=taps)
    starts = torch.rand(2, 30, generator=torch.Generator().manual_seed(seed)) < 0.1 if documents else None
    outputs, state = [], None
    edges = [0, *sorted(cuts), 30]
    for start, stop in zip(edges, edges[1:], strict=False):
        marks = {} if starts is None else {"starts": starts[:, start:stop]}
        output, state = run(case, start, stop, state, **marks)
        outputs.append(output)
    whole, after = run(case, **({} if starts is None else {"starts": starts}))
    if documents:  # what stands before a document's first token is still in the history, and is not looked at
        after, state = after[1:], state[1:]
    assert_close([torch.cat(outputs, 1), *state], [whole, *after], 1e-12)


def test_what_is_no_token_leaves_no_trace() -> None:
    case, counts = net_case(tokens=20), torch.tensor([20, 1])
    case.qkvz[1, 1:] = 1e6
    output, state = run(case, counts=counts)
    alone, after = run(NetCase(case.qkvz[1:], case.ba[1:], case.weights), 0, 1)
    assert_close([output[1:, :1], *(x[1:] for x in state)], [alone, *after], 1e-12)
    whole, end = run(case)
    assert_close([output[:1], *(x[:1] for x in state)], [whole[:1], *(x[:1] for x in end)], 1e-12)


def test_the_convolution_takes_no_sums_in_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((1, 50, 6), (6, 4)))
    found, history = short_convolution(x, weight)
    exact = convolution_by_token(x.double(), weight.double())
    assert found.dtype == history.dtype == torch.bfloat16
    assert (found != exact.bfloat16()).float().mean() < 0.02, "of sums in bfloat16 a third would differ"


def test_a_document_sees_nothing_of_the_one_before() -> None:
    case, starts = net_case(tokens=12), torch.zeros(2, 12, dtype=torch.bool)
    starts[:, 7] = True
    changed = case.qkvz.clone()
    changed[:, :7] = 5.0
    whole, state = run(case, starts=starts)
    other, after = run(NetCase(changed, case.ba, case.weights), starts=starts)
    assert torch.equal(whole[:, 7:], other[:, 7:]) and torch.equal(state.recurrent, after.recurrent)
    alone, _ = run(case, 7)
    assert_close([whole[:, 7:]], [alone], 1e-12)
