"""How the model is called: names of the cache, unknown keywords, foreign caches, other releases of Transformers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.specifiers import SpecifierSet
from transformers import DynamicCache, GenerationMixin

from megatron_fwpkm.hf import FwPKMForCausalLM
from megatron_fwpkm.hf.calls import CACHE_NAME
from megatron_fwpkm.hf.transformers_range import NEWEST, OLDEST, check_transformers

from .builders import small_model, token_ids

ROOT = Path(__file__).resolve().parents[2]


def endless(**changes: Any) -> FwPKMForCausalLM:
    """A model whose texts do not end."""
    model = small_model(**changes)
    model.generation_config.eos_token_id = None
    return model


def greedy(model: FwPKMForCausalLM, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """Greedy text by whole calls: no cache survives a step."""
    with torch.no_grad():
        for _ in range(tokens):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids


@pytest.mark.parametrize("name", ["past_key_values", "cache", None])
def test_generate_reads_every_step_with_its_past(name: str | None) -> None:
    """With either name of the cache, in every release: the text of greedy decoding without one."""
    model, ids = endless(), token_ids(1, 11)
    cache = model.new_cache()
    given = {} if name is None else {name: cache}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # generate() uses this release's own name
        out = model.generate(ids, max_new_tokens=30, do_sample=False, **given)
    assert torch.equal(out, greedy(model, ids, 30))
    assert cache.get_seq_length() == (0 if name is None else 40)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_forward_takes_the_cache_by_either_name(name: str) -> None:
    model, ids = small_model(), token_ids(1, 20)
    cache = model.new_cache()
    with torch.no_grad():
        whole = model(ids).logits
        first, second = (model(part, **{name: cache}) for part in (ids[:, :12], ids[:, 12:]))
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, rtol=1e-12, atol=1e-12)
    assert second[CACHE_NAME] is cache
    with pytest.raises(ValueError, match="past_key_values and cache are two names of one argument, but differ here"):
        model(ids, past_key_values=cache, cache=model.new_cache())
    with pytest.raises(ValueError, match="past_key_values and cache are two names of one argument, but differ here"):
        model.generate(ids, past_key_values=cache, cache=model.new_cache())


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_foreign_caches_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = endless(), token_ids(1, 9)
    for call in (model, model.model, model.generate):
        with pytest.raises(ValueError, match=f"{name} is a DynamicCache"):
            call(ids, **{name: DynamicCache()})
    # A release that makes the cache without asking the model for it.
    monkeypatch.setattr(FwPKMForCausalLM, "_prepare_cache_for_generation", _dynamic_cache)
    with pytest.raises(ValueError, match="is a DynamicCache, which has no fast-weight memory"):
        model.generate(ids, max_new_tokens=3)


def _dynamic_cache(self: object, config: object, model_kwargs: dict[str, Any], *args: object) -> None:
    model_kwargs[CACHE_NAME] = DynamicCache()


@pytest.mark.parametrize("lost", ["renamed", "dropped", "dropped without positions"])
def test_a_decoding_step_without_its_cache_is_an_error(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later release that hands the cache over in another way gives an error, never a text."""
    model, ids = endless(), token_ids(1, 9)
    original = GenerationMixin.prepare_inputs_for_generation

    def changed(self: object, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = original(self, *args, **kwargs)
        cache = inputs.pop(CACHE_NAME, None)
        if lost == "renamed":
            inputs["states"] = cache
        elif lost == "dropped without positions":
            inputs.pop("position_ids", None)
        return inputs

    monkeypatch.setattr(GenerationMixin, "prepare_inputs_for_generation", changed)
    renamed = "forward.. got an unexpected keyword argument 'states'"
    message = renamed if lost == "renamed" else "the last 1 of 10 tokens without the cache"
    with pytest.raises(ValueError, match=message):
        model.generate(ids, max_new_tokens=5, do_sample=False)


def test_positions_are_those_of_the_text() -> None:
    model, ids = small_model(), token_ids(1, 9)
    cache = model.new_cache()
    with torch.no_grad():
        given = model(ids, position_ids=torch.arange(9)[None]).logits
        assert torch.equal(given, model(ids).logits)
        with pytest.raises(ValueError, match="position_ids begin at 9, but no cache with the preceding tokens"):
            model(ids[:, -1:], position_ids=torch.tensor([[9]]))
        model(ids, cache=cache)
        with pytest.raises(ValueError, match="position_ids has 0 where the text continues at 9"):
            model(ids, cache=cache, position_ids=torch.arange(9)[None])
        with pytest.raises(ValueError, match="position_ids restart at 0 after 4: packing several texts into one row"):
            model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]]))
        with pytest.raises(ValueError, match=r"position_ids has shape \(3, 1, 9\)"):
            model(ids, position_ids=torch.arange(9).expand(3, 1, 9))


def test_packed_texts_of_the_flattening_collator_are_refused() -> None:
    collator = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = collator([{"input_ids": [3, 4, 5]}, {"input_ids": [6, 7]}])
    model = small_model()
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"):
        with pytest.raises(ValueError, match=f"{name}: packing several texts into one row is not supported"):
            model(batch["input_ids"], labels=batch["labels"], **{name: batch[name]})
    with pytest.raises(ValueError, match="position_ids restart at 0 after 2: .*DataCollatorWithFlattening"):
        model(**{name: batch[name] for name in ("input_ids", "labels", "position_ids")})


def test_what_libraries_add_is_known_and_the_rest_refused() -> None:
    model, ids = small_model(), token_ids(1, 9)
    added = dict(
        return_dict=True, output_attentions=False, cache_position=torch.arange(9), output_router_logits=None,
        is_causal=True, token_type_ids=None,
    )  # fmt: skip
    with torch.no_grad():
        plain = model(ids, labels=ids)
        out = model(ids, labels=ids, num_items_in_batch=torch.tensor(4), **added)
        assert torch.equal(out.logits, plain.logits) and out.loss.item() == pytest.approx(2 * plain.loss.item())
        assert torch.equal(model.model(ids, **added).last_hidden_state, model.model(ids).last_hidden_state)
    for name, value in (("output_attentions", True), ("is_causal", False), ("output_router_logits", True)):
        with pytest.raises(ValueError, match=f"{name}={value} is not supported by this model"):
            model(ids, **{name: value})
    for name in ("cach", "token_type_ids", "mems", "shift_labels"):
        for call in (model, model.model):
            with pytest.raises(ValueError, match=rf"forward\(\) got an unexpected keyword argument '{name}'"):
                call(ids, **{name: ids})


def test_no_tokens_are_refused() -> None:
    model = small_model()
    for shape in ((1, 0), (0, 5)):
        with pytest.raises(ValueError, match=rf"the input has shape \({shape[0]}, {shape[1]}\), expected \[batch, tok"):
            model(torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match=r"the input has shape \(7,\)"):
        model(torch.zeros(7, dtype=torch.long))


def test_releases_outside_the_tested_range() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_transformers(f"{OLDEST}.0")
        check_transformers(f"{NEWEST}.1")
        check_transformers(transformers.__version__)
    with pytest.warns(UserWarning, match=rf"transformers 5\.25\.0\.dev0 is newer than {NEWEST}, the last release that"):
        check_transformers("5.25.0.dev0")
    with pytest.warns(UserWarning, match="transformers 6.0.0 is newer"):
        check_transformers("6.0.0")
    for old in ("4.57.6", "5.16.1"):
        told = f"this model requires transformers {OLDEST} or newer, but {old}"
        with pytest.raises(ImportError, match=told) as refusal:
            check_transformers(old)
        named = SpecifierSet(str(refusal.value).partition("'transformers")[2].rstrip("'"))
        assert f"{OLDEST}.0" in named and f"{NEWEST}.9" in named and old not in named and "5.25.0" not in named


def test_the_range_is_the_same_everywhere() -> None:
    """What is required, what is installed, what is tried, and what the documents say."""
    text = {name: (ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt", "Makefile", "README.md")}
    assert set(re.findall(r"transformers>=([\d.]+)", text["pyproject.toml"])) == {OLDEST}
    assert re.search(rf"^transformers=={re.escape(NEWEST)}\.\d+$", text["constraints.txt"], re.MULTILINE)
    tried = re.findall(r"^TRANSFORMERS \?= (.*)$", text["Makefile"], re.MULTILINE)[0].split()
    assert tried[0] == f"{OLDEST}.0" and tried[-1].rpartition(".")[0] == NEWEST
    assert f"on Transformers {OLDEST}, 5.23 and {NEWEST}" in text["README.md"]
    assert f"({OLDEST} to {NEWEST})" in (ROOT / "megatron_fwpkm" / "hf" / "README.md").read_text()


@pytest.mark.parametrize(
    ("version", "status", "told"), [("5.16.0", 1, "ImportError: this model requires"), ("5.99.0", 0, "5.99.0 is newer")]
)
def test_the_release_is_checked_before_anything_of_it_is_used(version: str, status: int, told: str) -> None:
    """Also where the old release lacks what the model imports."""
    program = (
        f"import transformers; transformers.__version__ = {version!r}\n"
        f"if {status}: transformers.PreTrainedConfig = property()\n"
        "import megatron_fwpkm.hf.modeling_fwpkm\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
    )  # fmt: skip
    assert done.returncode == status and done.stderr.count(told) == 1, done.stderr
