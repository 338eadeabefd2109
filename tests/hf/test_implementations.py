"""What computes the memory of a model: the same numbers, and an error where it is not at hand."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.hf import implementations
from megatron_fwpkm.hf.implementations import implementation_for

from .builders import small_model, token_ids

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["reference", "sparse"])
def test_a_model_computes_the_same_with_every_implementation(name: str) -> None:
    ids = token_ids(1, 45)
    plain, other = small_model(), small_model(fwpkm_implementation=name)
    results = []
    for model in (plain, other):
        cache = model.new_cache()
        with torch.no_grad():
            logits = [model(ids[:, a:b], cache=cache).logits for a, b in ((0, 20), (20, 21), (21, 45))]
            cache.flush_memory()
            end = model(ids[:, :3], cache=cache).logits
            results.append(torch.cat([*logits, end, model(ids, use_cache=False).logits], 1))
            model.memory_mode = "frozen"
            results[-1] = torch.cat([results[-1], model(ids, cache=cache.clone()).logits], 1)
        state = cache.memory[1].state
        assert not torch.equal(state.whole_values(), model.model.layers[1].memory.values)
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def test_auto_on_the_cpu_is_plain_whatever_is_installed() -> None:
    assert implementation_for("auto", CPU) == (None, "plain")
    ids = token_ids(1, 45)
    with torch.no_grad():
        assert torch.equal(small_model()(ids).logits, small_model(fwpkm_implementation="plain")(ids).logits)


def test_auto_on_a_gpu_is_the_choice_of_the_package_or_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    ops, name = implementation_for("auto", GPU)
    assert ops.__name__ == "megatron_fwpkm.ops" and name == "auto"
    monkeypatch.setattr(implementations, "_package", lambda: None)
    assert implementation_for("auto", GPU) == (None, "plain")
    with pytest.raises(ValueError, match="fwpkm_implementation='triton' needs the package megatron_fwpkm, which"):
        implementation_for("triton", GPU)


def test_a_missing_package_is_no_error_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(implementations, "import_module", missing)
    implementations._package.cache_clear()
    try:
        assert implementation_for("auto", GPU) == (None, "plain")
    finally:
        implementations._package.cache_clear()


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="fwpkm_implementation='fast' is not known; choose one of: auto, reference, p"):
        small_model(fwpkm_implementation="fast")
