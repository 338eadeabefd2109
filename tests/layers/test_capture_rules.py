"""With Triton a memory layer never makes the host wait, in no reset mode, and does the same on any numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from megatron_fwpkm.layers import fast_weight_tables
from megatron_fwpkm.ops import ResetJournal
from tests.layers.test_fast_weight_tables import hidden, memory
from tests.ops.capture_rules import CaptureError, CaptureRules

_STARTS = torch.zeros(2, 8, dtype=torch.bool)
_STARTS[0, 5] = True


@pytest.fixture(autouse=True)
def journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals as on a GPU."""
    monkeypatch.setattr(fast_weight_tables, "ResetJournal", partial(ResetJournal, counts=False))


def run(seed: int, **options: Any) -> CaptureRules:
    """Forward, backward, statistics and reset of a layer, the second time: the first makes room for what is kept."""
    block = memory(topk=2, chunk_size=4, **options)
    block.document_starts = _STARTS if block.config.fwpkm.reset == "document" else None
    for number in range(2):
        x = hidden(seed + number, 8).requires_grad_()
        with CaptureRules(host=(_STARTS,)) as rules:
            block(x).square().sum().backward()
            block.statistics_on_device()
            block.consistency_hash()
            if block.config.fwpkm.reset == "step":
                block.reset()
    assert x.grad is not None and x.grad.isfinite().all()
    return rules


_SLOW: list[dict[str, Any]] = [{"reset": "never"}, {"reset": "document"}, {"reset": "step", "owner": "sequence"}]
_LIVES = [{"reset": "step"}, *(pytest.param(options, marks=pytest.mark.slow) for options in _SLOW)]


@pytest.mark.parametrize("options", _LIVES, ids=lambda options: " of ".join(options.values()))
def test_a_layer_keeps_the_rules(options: dict[str, Any]) -> None:
    run(1, implementation="triton", **options).assert_replays(run(5, implementation="triton", **options))


def test_the_cpu_s_implementation_does_not() -> None:
    with pytest.raises(CaptureError, match=r"^\w+ cannot be in a CUDA graph \(ops/"):
        run(1, implementation="sparse")
