"""A compiled model has no graph break, and gives the losses and gradients of the model as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.hf.builders import small_model, token_ids


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """tests/conftest.py switches it off."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("implementation", "length"), [pytest.param("auto", 21, marks=pytest.mark.slow), ("sparse", 5)]
)
def test_a_compiled_model_trains_as_it_is(implementation: str, length: int) -> None:
    found: list[dict[str, Any]] = []
    for compiled in (False, True):
        model = small_model(3, fwpkm_implementation=implementation).train()
        function = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        ids = token_ids(1, length)
        output = function(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        found.append({"loss": output.loss.detach(), "logits": output.logits.detach(), **gradients})
    plain, actual = found
    assert plain.keys() == actual.keys()
    for name, wanted in plain.items():
        assert (actual[name] is None) == (wanted is None), name
        assert wanted is None or torch.allclose(actual[name], wanted, rtol=1e-9, atol=1e-12), name
