"""The fast-weight MLP: closed forms against autograd and the authors' vectors, streaming, shards, errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_fwpkm.ops import (
    FastMLPOptions,
    FastMLPOutput,
    FastMLPState,
    FastMLPWeights,
    PendingTokens,
    fast_weight_mlp,
    flush_pending_mlp,
)
from megatron_fwpkm.ops.fast_weight_mlp.mlp_call import MLPCall
from megatron_fwpkm.ops.fast_weight_mlp.reference import run_reference
from tests.ops.cases import assert_same_pending, distance
from tests.ops.shards import ThreadShards, run_ranks

NAMES = ("w_gate", "b_gate", "w_up", "b_up", "w_down", "b_down")
"""The authors' names of the weights, in the order of ours."""
GOLDEN_TOLERANCE = {"f64": 1e-12, "f32": 2e-6}


@dataclass
class Case:
    """Inputs of one call."""

    queries: Tensor
    targets: Tensor
    gates: Tensor | None
    mask: Tensor | None
    state: FastMLPState
    options: FastMLPOptions

    def leaves(self) -> list[Tensor]:
        """Everything that may have a gradient."""
        gates = [] if self.gates is None else [self.gates]
        return [self.queries, self.targets, *self.state.weights, *gates]

    def with_gradients(self) -> Case:
        """The same case with fresh leaves."""
        queries, targets, *rest = (leaf.detach().clone().requires_grad_() for leaf in self.leaves())
        state = replace(self.state, weights=FastMLPWeights(*rest[:6]))
        return Case(queries, targets, rest[6] if rest[6:] else None, self.mask, state, self.options)

    def part(self, start: int, stop: int, state: FastMLPState) -> FastMLPOutput:
        """A call with some of the tokens."""
        gates, mask = (None if x is None else x[:, start:stop] for x in (self.gates, self.mask))
        tokens = self.queries[:, start:stop], self.targets[:, start:stop]
        return fast_weight_mlp(*tokens, gates, state, self.options, mask=mask)

    def run(self) -> FastMLPOutput:
        """The closed form."""
        return self.part(0, self.queries.shape[1], self.state)

    def expected(self) -> FastMLPOutput:
        """The reference."""
        call = MLPCall.of_tokens(self.queries, self.targets, self.gates, self.mask, self.state, self.options)
        return call.run(run_reference)


def make_case(
    seed: int = 0, *, tokens: int = 23, gated: bool = True, masked: bool = True, pending: int = 0, **options: Any
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def stretch(length: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        gates = torch.rand(2, length, generator=generator, dtype=torch.float64)
        mask = (torch.rand(2, length, generator=generator) < 0.7).double()
        return draw(2, length, 5), draw(2, length, 3), gates if gated else None, mask if masked else None

    shapes = (7, 5), (7,), (7, 5), (7,), (3, 7), (3,)
    weights = FastMLPWeights(*(0.4 * draw(*shape) for shape in shapes))
    waiting = PendingTokens(*stretch(pending)) if pending else None
    given = {"chunk_size": 8, "inner_lr": 0.3, **options}
    return Case(*stretch(tokens), FastMLPState(weights, waiting), FastMLPOptions(**given))


def gradients(case: Case, output: FastMLPOutput) -> list[Tensor]:
    weights = torch.randn(output.retrieved.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = torch.autograd.grad((output.retrieved * weights).sum(), case.leaves(), allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(case.leaves(), found, strict=True)]


def assert_same(ours: FastMLPOutput, expected: FastMLPOutput, tolerance: float = 1e-12) -> None:
    assert distance(ours.retrieved, expected.retrieved) <= tolerance
    assert distance(ours.memorization_loss, expected.memorization_loss) <= tolerance
    for name, one, other in zip(FastMLPWeights._fields, ours.state.weights, expected.state.weights, strict=True):
        assert distance(one, other) <= tolerance and not one.requires_grad, name
    assert_same_pending(ours.state.pending, expected.state.pending)


CASES: dict[str, dict[str, Any]] = {
    "chunks and a rest": {},
    "no gates": {"gated": False},
    "no mask": {"masked": False},
    "neither": {"gated": False, "masked": False, "tokens": 24},
    "no lookahead": {"lookahead": 0},
    "lookahead 3": {"lookahead": 3},
    "a rest too short to write": {"tokens": 18, "lookahead": 2},
    "one token": {"tokens": 1},
    "frozen": {"inner_lr": 0.0},
    "carry": {"boundary": "carry", "lookahead": 2},
    "carry with pending tokens": {"boundary": "carry", "lookahead": 2, "pending": 6},
    "pending tokens fill windows alone": {"boundary": "carry", "pending": 19, "tokens": 1},
    "official": {"boundary": "carry", "write_scale": "official", "pending": 6},
}


@pytest.mark.parametrize("name", CASES)
def test_closed_forms_equal_autograd(name: str) -> None:
    case = make_case(**CASES[name]).with_gradients()
    ours, expected = case.run(), case.expected()
    assert_same(ours, expected)
    for leaf, mine, theirs in zip(case.leaves(), gradients(case, ours), gradients(case, expected), strict=True):
        assert distance(mine, theirs) <= 1e-12, list(leaf.shape)
    with torch.no_grad():
        assert_same(case.run(), case.expected())


def golden_case(goldens: Any, name: str, precision: str) -> tuple[Case, dict[str, Tensor], dict[str, Any]]:
    golden = goldens(name)
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    inputs = {key: golden[f"in.{key}"].to(dtype) for key in ("q", "ref_v", "W", *NAMES)}
    state = FastMLPState(FastMLPWeights(*(inputs[key] for key in NAMES)))
    module = golden.meta["module"]
    options = FastMLPOptions(golden.meta["chunk_size"], module["lookahead"], module["learning_rate"])
    case = Case(inputs["q"], inputs["ref_v"], None, golden["in.mask"], state, options)
    prefix = f"{precision}."
    told = {key.removeprefix(prefix): x for key, x in golden.tensors.items() if key.startswith(prefix)}
    return case, {"W": inputs["W"], **told}, golden.meta


@pytest.mark.parametrize("precision", GOLDEN_TOLERANCE)
@pytest.mark.parametrize("form", ["run", "expected"])
def test_training_equals_authors_code(goldens: Any, form: str, precision: str) -> None:
    case, told, _ = golden_case(goldens, "fwmlp_train", precision)
    case = case.with_gradients()
    output = getattr(case, form)()
    found = torch.autograd.grad((output.retrieved * told["W"]).sum(), case.leaves())
    pairs = {"output": output.retrieved, "mem_losses": output.memorization_loss}
    pairs |= {f"grad.{key}": x for key, x in zip(("q", "ref_v", *NAMES), found, strict=True)}
    pairs |= {f"final.{key}": x for key, x in zip(NAMES, output.state.weights, strict=True)}
    far = {key: distance(x, told[key]) for key, x in pairs.items()}
    assert max(far.values()) <= GOLDEN_TOLERANCE[precision], far


@pytest.mark.parametrize("precision", GOLDEN_TOLERANCE)
def test_official_streaming_equals_authors_code(goldens: Any, precision: str) -> None:
    case, told, meta = golden_case(goldens, "fwmlp_stream", precision)
    case.options = replace(case.options, boundary="carry", write_scale="official")
    state, reads, start = case.state, [], 0
    for tokens in meta["calls"]:
        output = case.part(start, start + tokens, state)
        start, state = start + tokens, output.state
        reads.append(output.retrieved)
    far = {key: distance(x, told[f"final.{key}"]) for key, x in zip(NAMES, state.weights, strict=True)}
    far["output"] = distance(torch.cat(reads, 1), told["output"])
    assert max(far.values()) <= GOLDEN_TOLERANCE[precision], far


@settings(max_examples=30)
@given(
    cuts=st.lists(st.integers(0, 30), max_size=6),
    chunk_size=st.integers(1, 9),
    lookahead=st.integers(0, 3),
    masked=st.booleans(),
)
def test_any_cut_gives_the_same_result(cuts: list[int], chunk_size: int, lookahead: int, masked: bool) -> None:
    case = make_case(3, tokens=30, masked=masked, boundary="carry", chunk_size=chunk_size, lookahead=lookahead)
    state, outputs, edges = case.state, [], [0, *sorted(cuts), 30]
    for start, stop in zip(edges, edges[1:], strict=False):
        outputs.append(case.part(start, stop, state))
        state = outputs[-1].state
    reads, losses = (torch.cat([getattr(o, n) for o in outputs], 1) for n in ("retrieved", "memorization_loss"))
    assert_same(FastMLPOutput(reads, losses, state), case.run())


def test_flush_writes_the_complete_pairs_as_a_smaller_chunk() -> None:
    case = make_case(tokens=13, chunk_size=50, lookahead=2, boundary="carry")
    expected = replace(case, options=replace(case.options, chunk_size=11)).run()
    flushed = flush_pending_mlp(case.run().state, case.options)
    assert flushed.retrieved.shape == (2, 0, 3) and flushed.state.num_pending == 2
    assert_same(replace(expected, retrieved=flushed.retrieved), flushed)
    assert flush_pending_mlp(flushed.state, case.options).state is flushed.state
    assert flush_pending_mlp(make_case().state, case.options).memorization_loss.shape == (1, 0)


def test_later_calls_and_writes_into_the_state_leave_a_backward_alone() -> None:
    """Under a pipeline the second forward comes before the first backward; and nobody's tensors are modified."""
    first, second = make_case(1).with_gradients(), make_case(2).with_gradients()
    expected = gradients(first, first.expected())
    copies = [leaf.detach().clone() for leaf in first.leaves()]
    output = first.run()
    later = replace(second, state=output.state).run()
    for weight in (*output.state.weights, *later.state.weights):
        weight.fill_(float("nan"))
    for mine, theirs in zip(gradients(first, output), expected, strict=True):
        assert distance(mine, theirs) <= 1e-12
    assert all(torch.equal(leaf, copy) for leaf, copy in zip(first.leaves(), copies, strict=True))


@pytest.mark.parametrize("boundary", ["drop", "carry"])
def test_shards_of_the_hidden_width_are_the_whole(boundary: str) -> None:
    case = make_case(boundary=boundary, lookahead=2).with_gradients()
    wide = [torch.cat([w, 2 * w], axis).detach() for w, axis in zip(case.state.weights, (0, 0, 0, 0, 1), strict=False)]
    case = replace(case, state=FastMLPState(FastMLPWeights(*wide, case.state.weights.down_bias))).with_gradients()
    expected = case.run()

    def run(shards: ThreadShards) -> tuple[FastMLPOutput, list[Tensor]]:
        weights = case.state.weights
        own = [w.chunk(2, axis)[shards.rank] for w, axis in zip(weights, (0, 0, 0, 0, 1), strict=False)]
        part = replace(case, state=FastMLPState(FastMLPWeights(*own, weights.down_bias))).with_gradients()
        output = fast_weight_mlp(
            part.queries, part.targets, part.gates, part.state, part.options, mask=part.mask, sharding=shards
        )
        return output, gradients(part, output)

    results = run_ranks(2, run)
    axes = (None, None, 0, 0, 0, 0, 1, None, None)
    everyone = zip(*(found for _, found in results), strict=True)
    for whole, parts, axis in zip(gradients(case, expected), everyone, axes, strict=True):
        joined = parts[0] if axis is None else torch.cat(parts, axis)
        assert distance(joined, whole) <= 1e-12
        assert axis is not None or torch.equal(*parts)
    for output, _ in results:
        assert distance(output.retrieved, expected.retrieved) <= 1e-12
        assert distance(output.memorization_loss, expected.memorization_loss) <= 1e-12


REFUSED: list[tuple[str, dict[str, Any]]] = [
    (r"queries must have shape \[B, T, key_dim\].*key_dim=5, got \[2, 23, 4\]", {"queries": torch.zeros(2, 23, 4)}),
    (r"targets must have shape .*\[2, 23, 3\], got \[2, 23, 4\]", {"targets": torch.zeros(2, 23, 4).double()}),
    (r"gates must have shape \[B, T\]", {"gates": torch.zeros(2, 22).double()}),
    (r"mask must have shape \[B, T\]", {"mask": torch.zeros(23, 2)}),
    (r"targets are torch.float32 on cpu, but the fast weights are torch.float64", {"targets": torch.zeros(2, 23, 3)}),
    (r"state.pending was recorded with gates: pass gates", {"gates": None}),
]


@pytest.mark.parametrize(("message", "changes"), REFUSED)
def test_inputs_that_do_not_fit_are_refused(message: str, changes: dict[str, Any]) -> None:
    case = make_case(boundary="carry", pending=3)
    with pytest.raises(ValueError, match=message):
        replace(case, **changes).run()


@pytest.mark.parametrize(
    ("message", "name", "weight"),
    [
        (r"down_weight has shape \[3, 6\], which does not fit", "down_weight", torch.zeros(3, 6).double()),
        (r"up_bias must be float32 .*, got torch.float16", "up_bias", torch.zeros(7).half()),
        (r"gate_bias is torch.float32 on cpu, but gate_weight torch.float64", "gate_bias", torch.zeros(7)),
    ],
)
def test_weights_that_do_not_fit_are_refused(message: str, name: str, weight: Tensor) -> None:
    case = make_case()
    case.state = FastMLPState(case.state.weights._replace(**{name: weight}))
    with pytest.raises(ValueError, match=message):
        case.run()


def test_dropping_waiting_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="boundary='drop' would lose"):
        make_case(pending=3).run()


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("chunk_size=0 must be an integer >= 1", {"chunk_size": 0}),
        ("inner_lr=-1 must be a finite number", {"inner_lr": -1}),
        ("boundary='x' is not known; choose one of: drop, carry", {"boundary": "x"}),
        ("lookahead=8 leaves no tokens to write", {"lookahead": 8}),
        ("write_scale='official' .* requires boundary='carry'", {"write_scale": "official"}),
    ],
)
def test_options_out_of_range_are_refused(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        FastMLPOptions(**{"chunk_size": 8, **options})
