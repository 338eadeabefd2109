"""What the memory block does with texts: carrying over, documents, streams, masks, figures.

Two ways of computing the same are compared in float64: float32 may choose another slot at a near tie.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.counting import counting
from megatron_fwpkm.layers.memory_statistics import ForwardRecord, MemoryStatistics, hash_bits
from megatron_fwpkm.ops import FastWeightOutput, fast_weight_memory
from tests.layers.test_fast_weight_tables import equal, hidden, memory, snapshot
from tests.training.double_precision import double_precision


def _gradients(block, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(9))
    (outputs * weight).sum().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    block.zero_grad()
    return gradients


def test_evaluation_writes_as_training_does() -> None:
    trained, evaluated = memory(), memory().eval()
    with torch.no_grad():
        outputs = [evaluated(hidden(seed)) for seed in (1, 2)]
    assert all(torch.equal(trained(hidden(seed)), out) for seed, out in zip((1, 2), outputs, strict=True))
    assert equal(snapshot(trained), snapshot(evaluated))


def test_memory_is_carried_from_call_to_call() -> None:
    block = memory()
    assert not torch.equal(block(hidden(1)), block(hidden(1)))


def test_two_forwards_before_their_backwards_as_in_a_pipeline() -> None:
    """Backward does not look at the tables, so it does not matter what was written since."""
    block, pipelined = memory(), memory()
    expected = [_gradients(block, block(hidden(seed))) for seed in (1, 2)]
    outputs = [pipelined(hidden(seed)) for seed in (1, 2)]
    for out, gradients in zip(outputs, expected, strict=True):
        for name, gradient in _gradients(pipelined, out).items():
            assert torch.equal(gradient, gradients[name]), name


@double_precision()
def test_every_document_starts_from_the_initial_memory() -> None:
    """Documents of different lengths, at other places of a batch, each give what they give alone."""
    block = memory(reset="document")
    initial = snapshot(block)
    x = hidden(1)
    starts = torch.zeros(2, 48, dtype=torch.bool)
    starts[0, 0] = starts[0, 20] = starts[0, 21] = starts[1, 33] = True
    block.document_starts = starts
    out = block(x)
    assert equal(snapshot(block), initial)
    gradients = _gradients(block, out)

    alone = memory()
    parts = []
    for sequence, edges in ((0, (0, 20, 21, 48)), (1, (0, 33, 48))):
        pieces = []
        for start, stop in zip(edges, edges[1:], strict=False):
            alone.reset()
            pieces.append(alone(x[start:stop, sequence : sequence + 1]))
        parts.append(torch.cat(pieces))
    expected = torch.cat(parts, dim=1)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    for name, gradient in _gradients(alone, expected).items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-11, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    assert 0 < block.coverage() < 1 and block.statistics().memorization_loss > 0


@double_precision()
def test_without_marks_every_sequence_is_one_document() -> None:
    block, alone = memory(reset="document"), memory()
    out = block(hidden(1))
    for sequence in range(2):
        alone.reset()
        torch.testing.assert_close(
            out[:, sequence], alone(hidden(1)[:, sequence : sequence + 1])[:, 0], rtol=0, atol=1e-12
        )


def test_marks_of_another_batch_are_refused() -> None:
    block = memory(reset="document")
    block.document_starts = torch.zeros(2, 40, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"document_starts has shape \[2, 40\], but the batch has 2 sequences of 48"):
        block(hidden(1))


@double_precision()
def test_masked_tokens_are_not_written() -> None:
    block = memory(addressing_weight=0.0)
    before = snapshot(block)
    block(hidden(1), torch.zeros(2, 48))
    assert equal(snapshot(block), before)
    # The first document is masked, the second is not: it writes as if it stood alone.
    mask = torch.ones(2, 48)
    mask[:, :16] = 0
    documents, alone = memory(reset="document"), memory(reset="document")
    documents.document_starts = torch.zeros(2, 48, dtype=torch.bool)
    documents.document_starts[:, 16] = True
    out = documents(hidden(1), mask)
    torch.testing.assert_close(out[16:], alone(hidden(1)[16:], torch.ones(2, 32)), rtol=0, atol=1e-12)
    assert documents.statistics().memorization_loss < alone.statistics().memorization_loss


def test_a_closed_gate_keeps_tokens_from_being_written_unless_it_weighs_no_writes() -> None:
    weighed, unweighed = memory(gate_bias_init=-60.0), memory(gate_bias_init=-60.0, gate_writes=False)
    initial = weighed.values.clone()
    for block in (weighed, unweighed):
        block(hidden(1))
    assert torch.equal(weighed.values, initial) and not torch.equal(unweighed.values, initial)


def test_inner_lr_0_freezes_the_memory() -> None:
    block = memory(inner_lr=0.0)
    before = snapshot(block)
    out = block(hidden(1))
    assert torch.equal(block(hidden(1)), out) and equal(snapshot(block), before)
    assert block.coverage() == 0


@double_precision()
@pytest.mark.parametrize("cuts", [(48,), (20, 28), (1, 1, 30, 16)])
def test_a_stream_does_not_depend_on_how_it_is_cut(cuts: tuple[int, ...]) -> None:
    whole, cut = (memory(boundary="carry") for _ in range(2))
    for block in (whole, cut):
        block.eval()
        block.streaming = True
    with torch.no_grad():
        out = torch.cat([cut(part) for part in hidden(1).split(cuts)])
        torch.testing.assert_close(out, whole(hidden(1)), rtol=0, atol=1e-12)
    assert cut.pending is not None and cut.pending.num_tokens == whole.pending.num_tokens == 16
    torch.testing.assert_close(cut.values, whole.values, rtol=0, atol=1e-12)
    with cut.preserve_fast_weights():
        cut.reset()
        assert cut.pending is None
    assert cut.pending is not None


@double_precision()
def test_carried_training_writes_every_complete_pair_of_a_batch() -> None:
    """48 tokens in chunks of 16: two whole chunks, then the 15 pairs that are complete; one token has no target."""
    block = memory(boundary="carry")
    state = memory(boundary="carry").fast_weights()
    inputs = {}

    def spy(queries, values, gates, mask):
        inputs.update(queries=queries, values=values, gates=gates)
        return type(block)._remember(block, queries, values, gates, mask)

    block._remember = spy
    with torch.no_grad():
        block(hidden(1))
        queries = inputs["queries"].transpose(0, 1).unflatten(-1, (1, -1))
        targets, gates = inputs["values"].transpose(0, 1), inputs["gates"].squeeze(-1).transpose(0, 1)
        options = {"topk": 4, "boundary": "carry"}
        first = fast_weight_memory(queries[:, :33], targets[:, :33], gates[:, :33], state, chunk_size=16, **options)
        waiting = first.state.pending
        assert waiting is not None and waiting.num_tokens == 1
        last = fast_weight_memory(
            queries[:, 33:], targets[:, 33:], gates[:, 33:], first.state, chunk_size=15, **options
        )
    torch.testing.assert_close(block.values, last.state.values, rtol=0, atol=1e-12)
    torch.testing.assert_close(block.sub_keys, last.state.sub_keys, rtol=0, atol=1e-12)
    assert block.pending is None


def test_statistics_of_a_forward() -> None:
    block = memory(num_heads=2, gate_bias_init=-1.0)
    before = block.values.clone()
    block(hidden(1))
    statistics = block.statistics()
    assert 0.1 < statistics.gate_mean < 0.45, "the gate's bias begins where it is told to"
    assert statistics.memorization_loss > 0 and statistics.addressing_loss < 0
    assert statistics.coverage >= (block.values != before).any(1).float().mean().item() > 0


def test_statistics_count_reads_and_losses() -> None:
    """Two texts of three tokens with two reads each, in chunks of two tokens: 8 reads of 4 slots, then 4 of 1."""
    slots = torch.tensor([[[0, 1], [0, 2], [5, 5]], [[0, 1], [7, 7], [5, 5]]]).unsqueeze(2)
    state = memory().fast_weights()
    output = FastWeightOutput(
        retrieved=torch.zeros(2, 3, 16),
        slot_indices=slots,
        slot_weights=torch.zeros(2, 3, 1, 2),
        memorization_loss=torch.tensor([[1.0], [2.0]]),
        addressing_loss=torch.tensor([-3.0, -5.0]),
        state=state,
    )
    queries = torch.zeros(3, 2, 16)
    gates = torch.tensor([0.25, 0.75])
    coverage = torch.tensor(0.125, dtype=torch.float64)
    figures = ForwardRecord(queries, gates, [output, output], chunk_size=2).summarize(coverage)
    assert MemoryStatistics(*figures.tolist()) == MemoryStatistics(0.5, 0.125, 1 - 5 / 12, 1.5, -4.0)
    empty = replace(output, memorization_loss=torch.zeros(2, 0), addressing_loss=torch.zeros(0))
    figures = ForwardRecord(queries, None, [empty], chunk_size=2).summarize(coverage)
    assert figures[[0, 3, 4]].tolist() == [1.0, 0.0, 0.0]


def test_no_statistics_before_the_first_forward() -> None:
    with pytest.raises(AssertionError, match="before the first forward"):
        memory().statistics()


def test_a_hash_is_made_where_its_tensors_are() -> None:
    """A number that begins on the host would be copied, and the host would wait for it."""
    with counting(triton=False) as found:
        total = hash_bits([torch.empty(3, device="meta"), torch.empty(2, 4, device="meta", dtype=torch.int64)])
    assert total.is_meta and not found.waits


def test_consistency_hash_sees_single_bits_of_what_ranks_share() -> None:
    block, twin = memory(), memory()
    assert block.consistency_hash() == twin.consistency_hash(), "a hash is possible before the first forward"
    for each in (block, twin):
        each(hidden(1))
    first = block.consistency_hash()
    assert first.dtype == torch.int64 and first == twin.consistency_hash()
    with block.preserve_fast_weights():
        block(hidden(2))
    assert block.consistency_hash() == first
    slots, queries, gates = block._last.shared
    assert queries.shape == (3, 2, 16) and gates.shape == (48, 2, 1)
    for shared in (queries, gates):
        words = shared.view(torch.int32).view(-1)
        for place, bit in ((0, 0), (5, 31), (words.numel() - 1, 12)):
            flipped = 1 << bit if bit < 31 else -(1 << 31)
            words[place] ^= flipped
            assert block.consistency_hash() != first
            words[place] ^= flipped
    assert block.consistency_hash() == first
    slots[0, 3, 0] = slots[0, 3, 0].flip(0)
    assert block.consistency_hash() != first, "the same slots in another order"


def test_the_sample_of_queries_has_the_last_token() -> None:
    block = memory()
    with torch.no_grad():
        block(hidden(1, length=21))
        queries, _ = block.query_proj(block.query_norm(hidden(1, length=21)))
    torch.testing.assert_close(block._last.shared[1], queries[[4, 20]])
