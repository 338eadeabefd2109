"""Which tokens wrote which slots, against records kept one entry at a time."""

from __future__ import annotations

from collections import defaultdict, deque
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_fwpkm.evaluation.trace.slot_reads import SlotReads, SlotWrites, collect_reads, joined, watch_memory
from megatron_fwpkm.evaluation.trace.writer_record import FILE_NAME, FORMAT, WRITERS_PER_SLOT, WriterRecord
from megatron_fwpkm.hf.memory import PRODUCT_KEYS
from tests.evaluation.trace.brute_force import BruteForce
from tests.hf.builders import small_model, token_ids


def random_writes(tokens: int, seed: int, first: int = 0) -> SlotWrites:
    """Writes of few slots, so that most are written often; no token writes one twice."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(tokens)]).unsqueeze(1)
    return SlotWrites(torch.arange(first, first + tokens), slots, torch.rand(tokens, 1, 3, generator=generator))


def one_write(token: int, slots: list[int], steps: list[float]) -> SlotWrites:
    """What one token writes with one head."""
    return SlotWrites(torch.tensor([token]), torch.tensor([[slots]]), torch.tensor([[steps]]))


@pytest.mark.parametrize("sorted_often", [False, True])
def test_the_last_writers_of_every_slot_are_kept(monkeypatch: pytest.MonkeyPatch, sorted_often: bool) -> None:
    if sorted_often:
        monkeypatch.setattr("megatron_fwpkm.evaluation.trace.writer_record._MOST_UNSORTED", 1)
    record, expected = WriterRecord(), defaultdict(lambda: deque(maxlen=WRITERS_PER_SLOT))
    for seed, count in enumerate((7, 1, 20)):
        first = record.begin(f"text {seed}", torch.arange(count))
        written = random_writes(count, seed, first)
        record.add(2, written)
        for token, slots, steps in zip(*written, strict=True):
            for slot, step in zip(slots.flatten().tolist(), steps.flatten().tolist(), strict=True):
                expected[slot].append((int(token), seed, step))
    writers = record.layers[2]
    found = defaultdict(list)
    for slot, *entry in zip(writers.slots.tolist(), *(x.tolist() for x in writers[1:]), strict=True):
        found[slot].append((entry[0], entry[2], entry[1]))
    assert found == {slot: list(entries) for slot, entries in expected.items()} and len(found) == 6
    assert [record.text_of(token)[0::2] for token in (0, 6, 7, 8)] == [
        ("text 0", 0), ("text 0", 6), ("text 1", 0), ("text 2", 0),
    ]  # fmt: skip


def test_later_writes_leave_less_of_earlier_ones() -> None:
    record = WriterRecord()
    record.begin("a", torch.arange(4))
    record.add(0, one_write(0, [5], [0.5]))
    record.add(0, SlotWrites(torch.tensor([1, 2]), torch.tensor([[[5]], [[5]]]), torch.tensor([[[0.25]], [[0.35]]])))
    assert record.of(0, 5) == [
        (0, 0, pytest.approx(0.25)),
        (1, 1, pytest.approx(0.3125)),
        (2, 1, pytest.approx(0.4375)),
    ]
    record.add(0, one_write(3, [5, 5], [0.5, 0.5]))  # with two heads, and all the way: nothing of the others is left
    assert [(writer.token, writer.share) for writer in record.of(0, 5)] == [(0, 0), (1, 0), (2, 0), (3, 1)]
    record.add(0, one_write(-1, [7], [0.5]))
    assert record.of(0, 7) == record.of(0, 6) == record.of(1, 5) == []  # nobody that is known


def test_a_read_is_attributed_by_weight() -> None:
    record = WriterRecord()
    record.begin("a", torch.arange(2))
    record.add(0, one_write(0, [4, 5], [0.75, 0.25]))
    record.add(0, one_write(1, [5, 9], [0.75, 0.25]))
    asked = SlotReads(
        torch.tensor([[[4], [5]], [[5], [7]]]), torch.tensor([[[0.5], [0.5]], [[0.4], [0.6]]]), torch.ones(2)
    )
    left = 0.25 * 0.25 / (0.25 * 0.25 + 0.75)
    assert record.sources({0: asked}, 0) == [(0, pytest.approx(0.5 + left / 2)), (1, pytest.approx(0.5 - left / 2))]
    assert record.sources({0: asked}, 1) == [(1, pytest.approx(0.4 * (1 - left))), (0, pytest.approx(0.4 * left))]
    assert record.sources({3: asked}, 0) == []


@pytest.mark.parametrize(
    ("cuts", "changes"),
    [
        ((45,), {}),
        ((3, 14, 1, 1, 1, 25), {"fwpkm_lookahead": 2, "fwpkm_num_heads": 2}),
        ((8, 9, 20, 8), {"fwpkm_lookahead": 0, "fwpkm_num_heads": 2, "fwpkm_addressing_weight": 0.1}),
    ],
)
def test_writers_are_those_of_the_memory_computed_token_by_token(cuts: tuple[int, ...], changes: dict) -> None:
    """Of every slot that is read, when it is read; and in the end, after a flush."""
    model, ids = small_model(**changes), token_ids(1, sum(cuts) + 1)
    block, hidden = model.model.layers[1].memory, []
    hook = block.register_forward_pre_hook(lambda module, arguments: hidden.append(arguments[0].detach()))
    with torch.no_grad():
        model(input_ids=ids[:, :-1], memory="off", use_cache=False)
    hook.remove()
    oracle, record, cache = BruteForce(block, hidden[0]), WriterRecord(), model.new_cache()
    record.begin("text", ids[0])
    oracle.arrive(sum(cuts))
    read: list[int] = []

    def compare(layer: int, first: int, reads: SlotReads) -> None:
        for token, slots in enumerate(reads.slots, first):
            assert slots.sort().values.equal(oracle.slots[token].sort().values), token
            torch.testing.assert_close(
                reads.weights[token - first].sort().values, oracle.weights[token].sort().values.float()
            )
            for slot in slots.flatten().tolist():
                entries = oracle.known[token].get(slot, [])[-WRITERS_PER_SLOT:]
                assert [writer[:2] for writer in record.of(layer, slot)] == [entry[:2] for entry in entries]
                assert all(token >= entry.token + oracle.options.lookahead for entry in entries)
            read.append(token)

    with torch.no_grad(), watch_memory(cache, 0, compare, record.add):
        for part in ids[:, :-1].split(cuts, dim=1):
            model(input_ids=part, cache=cache)
        cache.flush_memory()
    assert read == list(range(sum(cuts)))
    oracle.flush()
    writers = record.layers[1]
    expected = [(slot, *entry) for slot in sorted(oracle.entries) for entry in oracle.entries[slot][-WRITERS_PER_SLOT:]]
    assert [(slot, token, write) for slot, token, write, _ in expected] == list(
        zip(writers.slots.tolist(), writers.tokens.tolist(), writers.writes.tolist(), strict=True)
    )
    torch.testing.assert_close(writers.weights, torch.tensor([entry[3] for entry in expected]))
    torch.testing.assert_close(cache.memory[1].owners[0].state.whole_values(), oracle.values)


def test_tokens_that_waited_before_are_no_known_writers_and_ended_texts_do_not_wait() -> None:
    model, ids, record = small_model(), token_ids(1, 40), WriterRecord()
    cache = model.new_cache()
    found: list[SlotWrites] = []
    with torch.no_grad():
        model(input_ids=ids[:, :5], cache=cache)
        with watch_memory(cache, 100, on_write=lambda layer, written: found.append(written)):
            model(input_ids=ids[:, 5:9], cache=cache)
            model(input_ids=ids[:, 9:12], cache=cache, memory="frozen")
            model(input_ids=ids[:, 12:18], cache=cache)
            cache.end_text()
            model(input_ids=ids[:, 18:28], cache=cache)
    numbers = [written.tokens.tolist() for written in found]
    assert numbers == [[-1] * 5 + [100, 101, 102], [103, *range(107, 112)], list(range(113, 121))]
    assert len(record.layers) == 0


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
    assert torch.equal(reads.slots[:7], nearest.slot_indices[0]) and len(reads.slots) == 30
    torch.testing.assert_close(reads.weights.sum((1, 2)), torch.ones(30))
    torch.testing.assert_close(reads.gates, gates[0].float().detach())
    assert traced.memory[1].owners[0].functions is PRODUCT_KEYS
    with pytest.raises(ValueError, match="one sequence at a time, but the cache has 2"), collect_reads(cache.fork(2)):
        pass


def test_a_record_is_saved_and_a_damaged_one_refused(tmp_path: Path) -> None:
    assert WriterRecord.load(tmp_path) is None
    record = WriterRecord()
    record.begin("täxt", torch.arange(9))
    record.add(1, random_writes(9, 0))
    copy = record.clone()
    copy.add(1, random_writes(3, 1, copy.begin("later", torch.arange(3))))
    assert record.names == ["täxt"] and len(record.ids) == 9 and record.layers[1].writes.max() == 0
    record.save(tmp_path / "book")
    again = WriterRecord.load(tmp_path / "book")
    assert again is not None and (again.names, again.starts) == (record.names, record.starts)
    assert torch.equal(again.ids, record.ids)
    assert all(torch.equal(*pair) for pair in zip(again.layers[1], record.layers[1], strict=True))
    again.add(1, random_writes(1, 2, 8))
    assert again.layers[1].writes.max() == 1  # writes are counted on
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
