"""Which tokens wrote which slots, against records kept one entry at a time."""

from __future__ import annotations

from collections import defaultdict, deque
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_fwpkm.evaluation.trace.slot_reads import SlotReads, collect_reads, joined
from megatron_fwpkm.evaluation.trace.writer_record import FILE_NAME, FORMAT, WRITERS_PER_SLOT, WriterRecord
from megatron_fwpkm.hf.memory import PRODUCT_KEYS
from tests.hf.builders import small_model, token_ids


def random_reads(tokens: int, seed: int) -> SlotReads:
    """Reads of few slots, so that most are written often."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randint(0, 6, (tokens, 3), generator=generator)
    return SlotReads(slots, torch.rand(tokens, 3, generator=generator), torch.rand(tokens, generator=generator))


def test_the_last_writers_of_every_slot_are_kept() -> None:
    record, expected = WriterRecord(), defaultdict(lambda: deque(maxlen=WRITERS_PER_SLOT))
    for seed, count in enumerate((7, 1, 20)):
        reads = random_reads(count, seed)
        first = record.begin(f"text {seed}", torch.arange(count))
        record.add(first, {2: reads})
        for token, (slots, weights, strength) in enumerate(zip(*reads, strict=True)):
            for slot, weight in zip(slots.tolist(), weights, strict=True):
                expected[slot].append((first + token, float(weight * strength)))
    assert {slot: record.layers[2].of(slot) for slot in range(7)} == {s: list(expected[s]) for s in range(7)}
    assert [record.text_of(token)[0::2] for token in (0, 6, 7, 8)] == [
        ("text 0", 0), ("text 0", 6), ("text 1", 0), ("text 2", 0),
    ]  # fmt: skip


def test_a_read_is_attributed_by_weight() -> None:
    record = WriterRecord()
    slots, weights = torch.tensor([[4, 5], [5, 9]]), torch.tensor([[0.75, 0.25], [0.75, 0.25]])
    record.add(record.begin("a", torch.arange(2)), {0: SlotReads(slots, weights, torch.ones(2))})
    asked = SlotReads(torch.tensor([[4, 5], [5, 7]]), torch.tensor([[0.5, 0.5], [0.4, 0.6]]), torch.zeros(2))
    assert record.sources({0: asked}, 0) == [(0, pytest.approx(0.625)), (1, pytest.approx(0.375))]
    assert record.sources({0: asked}, 1) == [(1, pytest.approx(0.3)), (0, pytest.approx(0.1))]
    assert record.sources({3: asked}, 0) == []


@pytest.mark.parametrize("mode", ["on", "frozen"])
def test_reads_are_those_of_the_model_and_change_nothing(mode: str) -> None:
    model, ids = small_model(), token_ids(1, 30)
    cache, traced = model.new_cache(), model.new_cache()
    outputs = model(input_ids=ids, cache=cache, memory=mode).logits
    hidden: list[torch.Tensor] = []
    block = next(m for m in model.modules() if hasattr(m, "shaped"))
    handle = block.register_forward_pre_hook(lambda module, arguments: hidden.append(arguments[0]))
    with torch.no_grad(), collect_reads(traced) as found:
        parts = [model(input_ids=part, cache=traced, memory=mode).logits for part in ids.split((4, 1, 25), dim=1)]
    handle.remove()
    torch.testing.assert_close(torch.cat(parts, 1), outputs)
    reads = joined(found)[1]
    queries, _, gates = block.project(torch.cat(hidden, 1))
    nearest = PRODUCT_KEYS.read_and_write(
        queries[:, :7], torch.zeros(1, 7, 12, dtype=queries.dtype), None, None, block.initial(), block.streaming,
        in_place=False,
    )  # fmt: skip
    assert torch.equal(reads.slots[:7], nearest.slot_indices[0].flatten(1)) and len(reads.slots) == 30
    torch.testing.assert_close(reads.weights.sum(1), torch.ones(30))
    expected = gates[0].float() if mode == "on" else torch.zeros(30)
    torch.testing.assert_close(reads.strengths, expected.detach())
    assert traced.memory[1].owners[0].functions is PRODUCT_KEYS
    with pytest.raises(ValueError, match="one sequence at a time, but the cache has 2"), collect_reads(cache.fork(2)):
        pass


def test_a_record_is_saved_and_a_damaged_one_refused(tmp_path: Path) -> None:
    assert WriterRecord.load(tmp_path) is None
    record = WriterRecord()
    record.add(record.begin("täxt", torch.arange(9)), {1: random_reads(9, 0)})
    copy = record.clone()
    copy.add(copy.begin("later", torch.arange(3)), {1: random_reads(3, 1)})
    assert record.names == ["täxt"] and len(record.ids) == 9
    record.save(tmp_path / "book")
    again = WriterRecord.load(tmp_path / "book")
    assert again is not None and (again.names, again.starts) == (record.names, record.starts)
    assert torch.equal(again.ids, record.ids)
    assert all(torch.equal(*pair) for pair in zip(again.layers[1], record.layers[1], strict=True))
    path = tmp_path / "book" / FILE_NAME
    tensors, metadata = load_file(path), {"format": FORMAT, "names": '["a"]'}
    for changes, told, message in (
        ({}, metadata | {"format": "other"}, "its format is 'other'"),
        ({}, metadata | {"names": "3"}, "no list of names"),
        ({}, metadata | {"names": "[3]"}, "no list of names"),
        ({}, metadata | {"names": '["a", "b"]'}, "2 texts with 9 tokens"),
        ({"starts": torch.tensor([1])}, metadata, "cannot begin at"),
        ({"ids": tensors["ids"].int()}, metadata, "ids must be torch.int64"),
        ({"layers.1.tokens": tensors["layers.1.tokens"] + 9}, metadata, "no tokens that were read"),
        ({"layers.1.slots": tensors["layers.1.slots"].flip(0)}, metadata, "not in order"),
        ({"layers.1.weights": torch.zeros(1)}, metadata, "not in order"),
        ({"other": torch.zeros(1, dtype=torch.int64)}, metadata, "not a record of writers"),
    ):
        save_file(tensors | {name: x.contiguous() for name, x in changes.items()}, path, told)
        with pytest.raises(ValueError, match=message):
            WriterRecord.load(tmp_path / "book")
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="is not a record of writers"):
        WriterRecord.load(tmp_path / "book")
