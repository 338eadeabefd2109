"""A model that is compiled or exported by torch gives what it gives as it is, without compiling at every step."""

from __future__ import annotations

import functools
import io
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


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "mode", "rows"), [(2, "on", 2), (2, "frozen", 2), (10, "on", 2)])
def test_a_compiled_model_decodes_without_compiling_again(layers: int, mode: str, rows: int) -> None:
    """After the prompt and the first chunk; windows, full attention, and chunks that are written in between."""
    model = small_model(num_hidden_layers=layers, attention_windows=[6] * (layers - 1) + [None])
    model.memory_mode = mode
    compiled, ids = torch.compile(model, backend="eager"), token_ids(rows, 60)
    ours, theirs, found = model.new_cache(), model.new_cache(), []
    torch._dynamo.utils.counters.clear()
    limit = {"recompile_limit": max(8, 4 * layers)}
    with torch.no_grad(), torch._dynamo.config.patch(**limit, fail_on_recompile_limit_hit=True):
        for begin, end in [(0, 12), *((place, place + 1) for place in range(12, 60))]:
            with torch._dynamo.config.patch(error_on_recompile=begin > 20):
                found.append(compiled(ids[:, begin:end], cache=ours).logits)
        expected = model(ids, cache=theirs).logits
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > layers
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-10, atol=1e-10)
    for memory, wanted in zip(ours.memory[1].owners, theirs.memory[1].owners, strict=True):
        torch.testing.assert_close(memory.state.whole_values(), wanted.state.whole_values(), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_generate_with_a_compiled_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled in the first four of its calls, and never again."""
    model, ids = small_model(attention_windows=[6, None]), token_ids(2, 12)
    asked = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(ids, **asked)
    compiled, graphs = torch.compile(model.forward, backend="eager"), []

    @functools.wraps(model.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = compiled(*args, **kwargs)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return output

    monkeypatch.setattr(model, "forward", forward)
    torch._dynamo.utils.counters.clear()
    assert torch.equal(model.generate(ids, **asked), expected)
    assert len(graphs) == 40 and 0 < graphs[0] < graphs[3] and set(graphs[4:]) == {graphs[3]}


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["on", "frozen", "off", "shared"])
def test_torch_export_without_a_cache(memory: str) -> None:
    """For texts of one shape; saved and loaded again."""
    model, file = small_model(), io.BytesIO()
    given = {"use_cache": False, "memory": memory}
    with torch.no_grad():
        torch.export.save(torch.export.export(model, (), {"input_ids": token_ids(2, 20), **given}, strict=False), file)
        file.seek(0)
        ids = token_ids(2, 20, seed=1)
        found = torch.export.load(file).module()(input_ids=ids, **given)
        assert torch.equal(found.logits, model(ids, **given).logits)


def test_torch_export_of_what_it_cannot_trace_is_refused() -> None:
    model, ids = small_model(), token_ids(2, 20)
    for given, message in (
        ({}, "torch.export cannot keep a memory from call to call; export with use_cache=False"),
        ({"use_cache": False, "attention_mask": torch.ones(2, 20)}, "torch.export cannot trace attention_mask"),
    ):
        with pytest.raises(ValueError, match=message), torch.no_grad():
            torch.export.export(model, (), {"input_ids": ids, **given}, strict=False)
