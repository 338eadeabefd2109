"""All implementations against the authors' released code (tests/goldens/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.ops import FastWeightState, fast_weight_memory
from tests.conftest import golden_names
from tests.ops.cases import distance

TOLERANCE = {"f64": 1e-12, "f32": 2e-6}
DTYPE = {"f64": torch.float64, "f32": torch.float32}
NOT_TARGETS = ("official", "allgrad_dropped")
RUNS = [("reference", "f64"), *((name, bits) for name in ("plain", "sparse", "triton") for bits in ("f64", "f32"))]
# Triton's interpreter takes seconds for what the GPU does in no time: on the CPU, the smallest case in float64.
QUICK_IN_TRITON = ("train_tiny_h1k2", "f64")
TRAIN = [name for name in golden_names("train_") if not any(word in name for word in NOT_TARGETS)]
STREAM = [name for name in golden_names("stream_") if name != "stream_nogate_noaddr"]


def runs_of(names: list[str]) -> list[Any]:
    """Every case with every run, for parametrize."""
    found = []
    for name in names:
        for implementation, precision in RUNS:
            is_quick = implementation != "triton" or (name, precision) == QUICK_IN_TRITON
            found.append(pytest.param(name, implementation, precision, marks=[] if is_quick else pytest.mark.slow))
    return found


class Inputs:
    """Tensors of a case in one precision, in the shapes of our interface."""

    def __init__(self, golden: Any, precision: str) -> None:
        if f"{precision}.output" not in golden.tensors:
            pytest.skip(f"this case has no {precision} vectors")
        self.golden, self.precision, self.module = golden, precision, golden.meta["module"]
        heads = self.module["mem_heads"]
        self.queries = self.of("q").unflatten(-1, (heads, -1))
        self.targets = self.of("ref_v")
        self.gates = self.of("gates") if "in.gates" in golden.tensors else None
        self.mask = golden.tensors.get("in.mask")
        self.sub_keys = self.of("keys0").view(heads, 2, self.module["mem_n_subkeys"], -1)
        self.values = self.of("values0")

    def of(self, name: str) -> Tensor:
        """An input tensor in this precision."""
        return self.golden[f"in.{name}"].to(DTYPE[self.precision])

    def expected(self, name: str) -> Tensor:
        """An output of the authors' code."""
        return self.golden[f"{self.precision}.{name}"]

    def expected_table(self, name: str, elsewhere: Tensor) -> Tensor:
        """A table of which only some rows were stored."""
        table = elsewhere.detach().clone()
        table[self.expected(f"{name}.rows").long()] = self.expected(f"{name}.data")
        return table

    def options(self, implementation: str) -> dict[str, Any]:
        """Keyword arguments that every call of the case shares."""
        return {
            "topk": self.module["mem_topk"],
            "lookahead": self.module["lookahead"],
            "inner_lr": self.module["learning_rate"],
            "addressing_weight": self.module["addr_loss_weight"],
            "score": self.module["qk_score_type"],
            "implementation": implementation,
        }


@pytest.mark.parametrize(("name", "implementation", "precision"), runs_of(TRAIN))
def test_training_equals_authors_code(goldens: Any, name: str, implementation: str, precision: str) -> None:
    case = Inputs(goldens(name), precision)
    leaves = {"q": case.queries, "ref_v": case.targets, "keys0": case.sub_keys, "values0": case.values}
    if case.gates is not None:
        leaves["gates"] = case.gates
    for leaf in leaves.values():
        leaf.requires_grad_()
    output = fast_weight_memory(
        case.queries,
        case.targets,
        case.gates,
        FastWeightState(case.sub_keys, case.values),
        mask=case.mask,
        chunk_size=case.golden.meta["chunk_size"],
        **case.options(implementation),
    )
    (output.retrieved * case.of("W")).sum().backward()

    assert torch.equal(output.slot_indices, case.expected("indices").long())
    pairs = {
        "output": (output.retrieved, case.expected("output")),
        "scores": (output.slot_weights, case.expected("scores")),
        "mem_losses": (output.memorization_loss, case.expected("mem_losses")),
        "addr_loss": (output.addressing_loss.mean()[None], case.expected("addr_loss")),
        "keys1": (output.state.sub_keys.flatten(0, 2), case.expected("keys1")),
        "values1": (output.state.values, case.expected_table("values1", case.values)),
        "grad.values0": (leaves["values0"].grad, case.expected_table("grad.values0", torch.zeros_like(case.values))),
    }
    for leaf in ("q", "ref_v", "keys0", "gates"):
        if leaf in leaves:
            expected = case.expected(f"grad.{leaf}")
            pairs[f"grad.{leaf}"] = (leaves[leaf].grad.reshape(expected.shape), expected)
    far = {key: distance(*pair) for key, pair in pairs.items() if not distance(*pair) <= TOLERANCE[precision]}
    assert not far, far


@pytest.mark.parametrize(("name", "implementation", "precision"), runs_of(STREAM))
def test_official_streaming_equals_authors_code(goldens: Any, name: str, implementation: str, precision: str) -> None:
    case = Inputs(goldens(name), precision)
    state = FastWeightState(case.sub_keys, case.values)
    outputs, position = [], 0
    calls = zip(case.golden.meta["calls"], case.golden.meta["per_call"][precision], strict=True)
    for (tokens, chunk_size), told in calls:
        part = slice(position, position + tokens)
        position += tokens
        output = fast_weight_memory(
            case.queries[:, part],
            case.targets[:, part],
            None if case.gates is None else case.gates[:, part],
            state,
            mask=None if case.mask is None else case.mask[:, part],
            chunk_size=chunk_size,
            boundary="carry",
            write_scale="official",
            **case.options(implementation),
        )
        state = output.state
        outputs.append(output)
        assert state.num_pending == told["queue_after"]
        assert bool(output.addressing_loss.numel()) == told["updated"]
        if told["updated"]:
            assert output.addressing_loss.mean().item() == pytest.approx(told["addr_loss"], rel=TOLERANCE[precision])

    assert torch.equal(torch.cat([o.slot_indices for o in outputs], 1), case.expected("indices").long())
    pairs = {
        "output": (torch.cat([o.retrieved for o in outputs], 1), case.expected("output")),
        "mem_losses": (torch.cat([o.memorization_loss for o in outputs], 1), case.expected("mem_losses")),
        "keys1": (state.sub_keys.flatten(0, 2), case.expected("keys1")),
        "values1": (state.values, case.expected_table("values1", case.values)),
    }
    if state.pending is not None:
        pairs["queue.q"] = (state.pending.queries.flatten(2), case.expected("queue.q"))
        pairs["queue.ref_v"] = (state.pending.targets, case.expected("queue.ref_v"))
    far = {key: distance(*pair) for key, pair in pairs.items() if not distance(*pair) <= TOLERANCE[precision]}
    assert not far, far


@pytest.mark.parametrize(
    ("implementation", "precision"),
    [pytest.param(*run, marks=pytest.mark.slow if run == ("triton", "f32") else ()) for run in RUNS],
)
def test_reads_before_a_write_that_also_moves_keys(goldens: Any, implementation: str, precision: str) -> None:
    """In `stream_nogate_noaddr` the memorization loss moves the sub-keys as well: comparable up to the first write."""
    case = Inputs(goldens("stream_nogate_noaddr"), precision)
    tokens, chunk_size = 33, case.golden.meta["calls"][0][1]
    output = fast_weight_memory(
        case.queries[:, :tokens],
        case.targets[:, :tokens],
        None,
        FastWeightState(case.sub_keys, case.values),
        chunk_size=chunk_size,
        boundary="carry",
        write_scale="official",
        **{**case.options(implementation), "addressing_weight": 0.0},
    )
    assert torch.equal(output.slot_indices, case.expected("indices")[:, :tokens].long())
    assert distance(output.retrieved, case.expected("output")[:, :tokens]) <= TOLERANCE[precision]
    assert distance(output.memorization_loss, case.expected("mem_losses")[:, :chunk_size]) <= TOLERANCE[precision]


def test_committed_vectors_are_found() -> None:
    """Without them the tests above would silently test nothing."""
    assert len(TRAIN) >= 5 and len(STREAM) >= 2


@pytest.mark.parametrize("name", TRAIN)
def test_float32_vectors_hold_no_near_ties(goldens: Any, name: str) -> None:
    """Inputs that are off by far more than rounding choose the same slots, so every CPU's float32 does."""
    case = Inputs(goldens(name), "f32")
    generator = torch.Generator().manual_seed(0)

    def disturbed(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        noise = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
        return x.double() + 1e-5 * x.abs().max() * noise

    for _ in range(3):
        sub_keys, values, queries, targets, gates = (
            disturbed(x) for x in (case.sub_keys, case.values, case.queries, case.targets, case.gates)
        )
        state = FastWeightState(sub_keys, values)
        options = {**case.options("sparse"), "chunk_size": case.golden.meta["chunk_size"], "mask": case.mask}
        output = fast_weight_memory(queries, targets, gates, state, **options)
        assert torch.equal(output.slot_indices, case.expected("indices").long())
