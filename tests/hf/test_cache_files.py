"""What was learned from a document is a small file: it comes back as it was, for the model that wrote it alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_fwpkm.hf import FwPKMForCausalLM
from megatron_fwpkm.hf.cache import FwPKMCache
from megatron_fwpkm.hf.cache_tensors import FILE_NAME
from tests.hf.builders import small_model, token_ids
from tests.hf.test_owners import KINDS

LAYOUTS = [*KINDS, {"token_mixers": ["gdn", "swa"], "attention_windows": [None, 6]}]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["windows", "two memories", "fast mlp", "delta net"])
@pytest.mark.parametrize("owner", ["per-sequence", "shared"])
def test_a_cache_comes_back_as_it_was(layout: dict[str, Any], owner: str, tmp_path: Path) -> None:
    """In the middle of a text of two sequences, with tokens that wait."""
    model, ids = small_model(**layout), token_ids(2, 60)
    cache = model.new_cache(memory=owner)
    with torch.no_grad():
        model(ids[:, :43], cache=cache)
        cache.save_pretrained(tmp_path)
        found = FwPKMCache.from_pretrained(tmp_path, model)
        expected = model(ids[:, 43:], cache=cache).logits
        assert torch.equal(model(ids[:, 43:], cache=found).logits, expected)
    assert found.batch_size == 2 and found.owner == owner and found.get_seq_length() == 60


def test_an_empty_cache_comes_back(tmp_path: Path) -> None:
    model = small_model()
    model.new_cache().save_pretrained(tmp_path)
    assert FwPKMCache.from_pretrained(tmp_path, model).memory[1].owners[0].is_fresh


def test_only_touched_rows_are_kept(tmp_path: Path) -> None:
    """4,096 tokens of a table of 4,096 slots, read by few of them, and of one with room for all."""
    sizes = {"fwpkm_num_subkeys": 256, "fwpkm_topk": 2, "fwpkm_chunk_size": 512, "fwpkm_num_heads": 2}
    model = small_model(dtype=torch.float32, **sizes)
    cache = model.read(token_ids(1, 4096))
    cache.save_pretrained(tmp_path)
    stored = load_file(tmp_path / FILE_NAME)
    rows = stored["memory.1.0.rows"]
    assert 0 < len(rows) <= 4096 * 2 * 2 and len(rows) == len(cache.memory[1].state.overlay) < 256**2
    table = model.model.layers[1].memory.values.nbytes
    assert cache.nbytes < 1.5 * rows.nbytes + 256**2 * 4 + 200_000 < table
    assert (tmp_path / FILE_NAME).stat().st_size < rows.nbytes + 8 * len(rows) + 100_000


SCRIPT = """
import sys, torch
from megatron_fwpkm.hf import FwPKMForCausalLM
from megatron_fwpkm.hf.cache import FwPKMCache
model = FwPKMForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float64)
cache = FwPKMCache.from_pretrained(sys.argv[2], model)
ids = torch.tensor([[int(token) for token in sys.argv[3].split()]])
print(*model.generate(ids, cache=cache, max_new_tokens=12, do_sample=False)[0].tolist())
"""


@pytest.mark.slow
def test_another_process_answers_the_same(tmp_path: Path) -> None:
    small_model(3, eos_token_id=None).save_pretrained(tmp_path / "model")
    model = FwPKMForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    cache = model.read(token_ids(1, 100))
    cache.save_pretrained(tmp_path / "book")
    ids = token_ids(1, 9, seed=2)
    command = [sys.executable, "-c", SCRIPT, tmp_path / "model", tmp_path / "book", " ".join(map(str, ids[0].tolist()))]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    expected = model.generate(ids, cache=cache, max_new_tokens=12, do_sample=False)[0].tolist()
    assert [int(token) for token in out.split()] == expected


def test_the_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    model = small_model()
    model.read(token_ids(1, 40)).save_pretrained(tmp_path)
    other = small_model(seed=1)
    for stranger in (other, small_model().float()):
        with pytest.raises(ValueError, match="was written by another model"):
            FwPKMCache.from_pretrained(tmp_path, stranger)
    FwPKMCache.from_pretrained(tmp_path, small_model().model)  # the decoder of an equal one
    with pytest.raises(ValueError, match="does not exist"):
        FwPKMCache.from_pretrained(tmp_path / "none", model)


SLOTS, ROWS, WAITING = "memory.1.0.slots", "memory.1.0.rows", "memory.1.0.pending."
DAMAGE: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor | None]]] = {
    "negative slot": lambda good: {SLOTS: torch.cat([torch.tensor([-1]), good[SLOTS][1:]])},
    "slot beyond the table": lambda good: {SLOTS: torch.cat([good[SLOTS][:-1], torch.tensor([64])])},
    "a slot twice": lambda good: {SLOTS: torch.cat([good[SLOTS][:1], good[SLOTS][:-1]])},
    "slots are floats": lambda good: {SLOTS: good[SLOTS].double()},
    "rows of another width": lambda good: {ROWS: good[ROWS][:, 1:]},
    "rows are not finite": lambda good: {ROWS: good[ROWS] * float("nan")},
    "no rows": lambda good: {ROWS: None},
    "sub-keys of another shape": lambda good: {"memory.1.0.sub_keys": good["memory.1.0.sub_keys"][..., 1:]},
    "no waiting queries": lambda good: {f"{WAITING}queries": None},
    "fewer waiting targets": lambda good: {f"{WAITING}targets": good[f"{WAITING}targets"][:, 1:]},
    "too many memories": lambda good: {"sequences": torch.tensor([10**9])},
    "another layer": lambda good: {"memory.0.0.rows": good[ROWS]},
    "longer than it is": lambda good: {"text.lengths": good["text.lengths"] + 100},
    "no keys": lambda good: {"layers.0.keys": None},
    "another batch": lambda good: {"layers.0.keys": good["layers.0.keys"].repeat(2, 1, 1, 1)},
    "a foreign tensor": lambda good: {"foreign": torch.zeros(1)},
}


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    model = small_model()
    cache = model.new_cache()
    with torch.no_grad():
        model(token_ids(1, 43), cache=cache)
    cache.save_pretrained(tmp_path / "good")
    good = FwPKMCache.from_pretrained(tmp_path / "good", model)
    with safe_open(tmp_path / "good" / FILE_NAME, "pt") as file:
        metadata = file.metadata()
    before = good.state_dict()
    for kind, damage in DAMAGE.items():
        changed = {**before, **damage(before)}
        tensors = {name: tensor.contiguous().clone() for name, tensor in changed.items() if tensor is not None}
        (tmp_path / kind).mkdir()
        save_file(tensors, tmp_path / kind / FILE_NAME, metadata=metadata)
        with pytest.raises(ValueError, match="is damaged"):
            FwPKMCache.from_pretrained(tmp_path / kind, model)
        with pytest.raises(ValueError, match=r"memory\.|text\.|layers\.|sequences|foreign"):
            good.load_state_dict(tensors)
        after = good.state_dict()  # which a refusal leaves as it was
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before), kind
    whole = (tmp_path / "good" / FILE_NAME).read_bytes()
    for cut in (0, 7, 100, len(whole) - 3):
        (tmp_path / "good" / FILE_NAME).write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="is damaged"):
            FwPKMCache.from_pretrained(tmp_path / "good", model)


def test_a_cache_moves_with_its_model() -> None:
    model, ids = small_model(3), token_ids(1, 60)
    cache = model.new_cache()
    with torch.no_grad():
        model(ids[:, :43], cache=cache)
        twin = cache.clone().to("cpu")
        assert twin.memory[1].owners[0].initial.values is model.model.layers[1].memory.values
        expected = model(ids[:, 43:], cache=cache).logits
        assert torch.equal(model(ids[:, 43:], cache=twin).logits, expected)
    away = cache.clone().to("meta")
    assert all(tensor.device.type == "meta" for layer in away.layers for tensor in [layer.keys, layer.values])
    assert away.memory[1].state.overlay.table.device.type == "meta"
