"""Every mistake a caller can make ends in a ValueError that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_fwpkm.ops import (
    FastWeightState,
    PendingTokens,
    fast_weight_memory_,
    flush_pending,
    flush_pending_,
)
from tests.ops.cases import Case, make_case

OPTIONS = [
    ({"topk": 0}, "topk=0 must be an integer >= 1"),
    ({"topk": 2.5}, "topk=2.5 must be an integer >= 1"),
    ({"topk": 6}, "topk=6 exceeds the number of sub-keys, 5; lower topk"),
    ({"chunk_size": 0}, "chunk_size=0 must be an integer >= 1"),
    ({"chunk_size": True}, "chunk_size=True must be an integer"),
    ({"lookahead": -1}, "lookahead=-1 must be an integer >= 0"),
    ({"inner_lr": -0.1}, "inner_lr=-0.1 must be a finite number >= 0"),
    ({"inner_lr": float("nan")}, "inner_lr=nan must be a finite number"),
    ({"addressing_weight": float("inf")}, "addressing_weight=inf must be a finite number"),
    ({"inner_lr": 1e30}, r"inner_lr=1e\+30 must be a finite number >= 0 \(0 disables it\) and <= 100"),
    ({"inner_lr": "1"}, "inner_lr='1' must be a finite number"),
    ({"addressing_weight": True}, "addressing_weight=True must be a finite number"),
    ({"score": "cosine"}, "score='cosine' is not known; choose one of: idw, dot_product"),
    ({"boundary": "cut"}, "boundary='cut' is not known; choose one of: drop, carry"),
    ({"write_scale": "paper"}, "write_scale='paper' is not known; choose one of: consistent, official"),
    ({"implementation": "cuda"}, "='cuda' is not known; choose one of: auto, reference, plain, sparse, triton"),
    ({"undo_log": "fp16"}, "undo_log='fp16' is not known; choose one of: fp32, bf16, recompute"),
    ({"write_scale": "official"}, "requires boundary='carry'"),
    (
        {"lookahead": 8},
        "lookahead=8 leaves no tokens to write in a chunk of chunk_size=8: raise chunk_size above 8",
    ),
    (
        {"lookahead": 9, "boundary": "carry", "write_scale": "official"},
        "use boundary='carry' with write_scale='consistent'",
    ),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options(options: dict[str, Any], message: str) -> None:
    case = make_case()
    with pytest.raises(ValueError, match=message):
        case.run(**options)
    state = FastWeightState(case.state.sub_keys, case.state.values)
    with pytest.raises(ValueError, match=message):
        fast_weight_memory_(case.queries, case.targets, None, state, **{**case.options, **options})


def test_lookahead_beyond_the_chunk_is_fine_where_tokens_wait() -> None:
    output = make_case(tokens=20, chunk_size=2, lookahead=5, boundary="carry").run()
    assert output.state.num_pending == 6


def with_state(**changes: Any) -> Callable[[Case], Case]:
    """Replace fields of the state; callables get the old value."""

    def change(case: Case) -> Case:
        new = {key: f(getattr(case.state, key)) if callable(f) else f for key, f in changes.items()}
        return replace(case, state=replace(case.state, **new))

    return change


def with_inputs(**changes: Callable[[Any], Any]) -> Callable[[Case], Case]:
    """Replace token inputs by a function of the old ones."""
    return lambda case: replace(case, **{key: f(getattr(case, key)) for key, f in changes.items()})


def bare(pending: PendingTokens | None) -> PendingTokens:
    """Pending tokens without gates."""
    assert pending is not None
    return replace(pending, gates=None)


INPUTS = [
    (with_state(sub_keys=lambda k: k[0]), r"must have shape \[heads, 2, num_subkeys, key_dim / 2\], got \[2, 5, 3\]"),
    (with_state(values=lambda v: v[:-1]), r"values must have 25 rows, got \[24, 4\]"),
    (with_state(values=lambda v: v.float()), "both tables must have the same dtype .* and device"),
    (
        with_state(values=lambda v: v.bfloat16(), sub_keys=lambda k: k.bfloat16()),
        "sub_keys must be float32 .*, got torch.bfloat16",
    ),
    (with_inputs(queries=lambda q: q[0]), r"have shape \[B, T, heads, key_dim\] with B >= 1, got \[23, 2, 6\]"),
    (with_inputs(queries=lambda q: q[:0]), "B >= 1"),
    (with_inputs(queries=lambda q: q[..., :4]), r"= \[2, 23, 2, 6\], got \[2, 23, 2, 4\]"),
    (with_inputs(queries=lambda q: q[:, :, :1]), r"of these sub_keys = \[2, 23, 2, 6\], got \[2, 23, 1, 6\]"),
    (with_inputs(targets=lambda v: v[:, 1:]), r"targets must have shape \[B, T, value_dim\] = \[2, 23, 4\], got"),
    (with_inputs(gates=lambda g: g.unsqueeze(-1)), r"gates must have shape \[B, T\] = \[2, 23\], got \[2, 23, 1\]"),
    (with_inputs(mask=lambda m: torch.ones(23)), r"mask must have shape \[B, T\] = \[2, 23\], got \[23\]"),
    (with_inputs(queries=lambda q: q.half()), "queries are torch.float16 on cpu, but sub_keys are torch.float64"),
    (with_inputs(targets=lambda v: v.float()), r"targets are torch.float32 .* \(for example with .to\(sub_keys\)\)"),
    (with_inputs(gates=lambda g: g.float()), "gates are torch.float32"),
    (with_inputs(mask=lambda m: torch.ones(2, 23, device="meta")), "mask is on meta, but the tables are on cpu"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), INPUTS)
def test_inputs(change: Callable[[Case], Case], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change(make_case()).run()


PENDING = [
    (lambda case: replace(case, options={**case.options, "boundary": "drop"}), "state.pending holds 5 tokens, which"),
    (lambda case: replace(case, queries=case.queries[:1], targets=case.targets[:1], gates=None), "batch size"),
    (lambda case: replace(case, gates=None), "state.pending was recorded with gates: pass gates in this call too"),
    (with_state(pending=bare), "state.pending was recorded with no gates: leave gates out in this call too"),
]


@pytest.mark.parametrize(("change", "message"), PENDING)
def test_pending_tokens_that_do_not_fit(change: Callable[[Case], Case], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change(make_case(num_pending=5, boundary="carry")).run()


def test_tables_that_require_gradients_are_not_written_in_place() -> None:
    case = make_case().requires_grad()
    with pytest.raises(ValueError, match="detach them, or use fast_weight_memory, which copies them"):
        fast_weight_memory_(case.queries, case.targets, case.gates, case.state, **case.options)
    with pytest.raises(ValueError, match="detach them, or use flush_pending, which copies them"):
        flush_pending_(case.state, **case.options)


def test_flush_checks_its_options() -> None:
    case = make_case()
    for function in (flush_pending, flush_pending_):
        with pytest.raises(ValueError, match="topk=9 exceeds the number of sub-keys, 5"):
            function(case.state, topk=9, chunk_size=8)
        with pytest.raises(ValueError, match="implementation='fast' is not known"):
            function(case.state, topk=1, chunk_size=8, implementation="fast")
