"""The rule about chunks and sequences says what the memory does: is anything read that was written?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.chunk_rules import chunk_problems, longest_chunk
from megatron_fwpkm.config.chunk_rules import notes_on_writing as notes_of
from megatron_fwpkm.config.memories import memory_kinds
from megatron_fwpkm.ops import FastWeightState, fast_weight_memory

LENGTH = 12


def configured(
    chunk: int, lookahead: int = 1, boundary: Any = "drop", reset: Any = "never", length: int = LENGTH,
    batch: int | None = None, inner_lr: float = 1.0, owner: Any = "micro-batch",
) -> PretrainConfig:  # fmt: skip
    base = PretrainConfig()
    fwpkm = replace(
        base.fwpkm, layer_numbers=(1,), chunk_size=chunk, lookahead=lookahead, boundary=boundary, reset=reset,
        inner_lr=inner_lr, owner=owner,
    )  # fmt: skip
    training = replace(base.training, global_batch_size=batch)
    return replace(base, fwpkm=fwpkm, model=replace(base.model, seq_length=length), training=training)


def read(chunk: int, lookahead: int, boundary: str, length: int, inner_lr: float = 1.0) -> tuple[Tensor, Tensor]:
    """What a sequence reads, and the targets of what it writes."""
    generator = torch.Generator().manual_seed(chunk)
    keys, values = torch.randn(1, 2, 4, 2, generator=generator), torch.randn(16, 3, generator=generator)
    queries, targets = torch.randn(1, length, 1, 4, generator=generator), torch.randn(1, length, 3, generator=generator)
    targets.requires_grad_()
    output = fast_weight_memory(
        queries, targets, None, FastWeightState(keys, values), topk=2, chunk_size=chunk, lookahead=lookahead,
        inner_lr=inner_lr, boundary=boundary, implementation="reference",
    )  # fmt: skip
    return output.retrieved, targets


def notes_on_writing(config: PretrainConfig) -> Iterator[str]:
    return notes_of(config, *memory_kinds(config))


def reads_own_writes(chunk: int, lookahead: int, boundary: str, length: int = LENGTH) -> bool:
    """Whether what a sequence reads depends on what it has written."""
    frozen, written = (read(chunk, lookahead, boundary, length, inner_lr)[0] for inner_lr in (0.0, 1.0))
    return not torch.equal(frozen, written)


def reaches_targets(chunk: int, lookahead: int, boundary: str, length: int) -> bool:
    """Whether what a sequence reads has a gradient in what it has written."""
    retrieved, targets = read(chunk, lookahead, boundary, length)
    if not retrieved.requires_grad:
        return False
    retrieved.sum().backward()
    return targets.grad is not None and bool(targets.grad.any())


@pytest.mark.parametrize("boundary", ["drop", "carry"])
@pytest.mark.parametrize(("reset", "owner"), [("document", "micro-batch"), ("step", "sequence")])
def test_where_a_memory_ends_with_its_text_the_rule_is_what_it_does(boundary: str, reset: str, owner: str) -> None:
    seen = set()
    for lookahead, chunk in product((1, 2, 4), range(2, LENGTH + 1)):
        if chunk > lookahead:
            fine = not list(chunk_problems(configured(chunk, lookahead, boundary, reset, batch=4, owner=owner), 1))
            assert fine == reads_own_writes(chunk, lookahead, boundary), (chunk, lookahead)
            noted = bool(list(notes_on_writing(configured(chunk, lookahead, boundary))))
            assert noted != fine
            seen.add(fine)
    assert seen == {True, False}


@pytest.mark.parametrize("boundary", ["drop", "carry"])
@pytest.mark.parametrize("reset", ["never", "step", "document"])
@pytest.mark.parametrize("batch", [None, 4])
def test_the_advised_chunk_is_accepted_and_one_more_is_not(boundary: str, reset: str, batch: int | None) -> None:
    config = configured(3, 2, boundary, reset, batch=batch)
    most = longest_chunk(config, memory_kinds(config)[0], 1)
    assert not list(chunk_problems(configured(most, 2, boundary, reset, batch=batch), 1))
    for chunk in (most + 1, 512):
        (said,) = chunk_problems(configured(chunk, 2, boundary, reset, batch=batch), 1)
        assert said.startswith(f"--fwpkm-chunk-size {chunk} ")
        assert said.endswith(f"; use a chunk of at most {most}")


def test_a_memory_that_no_other_sequence_reads_is_named_by_its_owner() -> None:
    (said,) = chunk_problems(configured(LENGTH, reset="step", batch=4, owner="sequence"), 1)
    assert said == (
        "--fwpkm-chunk-size 12 first writes after 12 tokens of --seq-length 12, and --fwpkm-owner sequence ends the "
        "memory before anything is read; use a chunk of at most 11"
    )


def test_what_is_read_by_later_sequences_is_fine() -> None:
    """At the sequence's length a memory that is carried over is written once per sequence; that is said."""
    assert not list(chunk_problems(configured(LENGTH)))
    assert not list(chunk_problems(configured(LENGTH, reset="step", batch=4), 1))
    assert "resets the memory before anything is read" in next(chunk_problems(configured(LENGTH, reset="step"), 1))
    assert list(notes_on_writing(configured(LENGTH))) == [
        "A sequence never reads its own writes, because its only write (--fwpkm-chunk-size 12) comes at its "
        "end (--seq-length 12); later sequences read it, and no gradient reaches what is written"
    ]
    (said,) = notes_on_writing(configured(LENGTH, reset="step", batch=4))
    assert said.endswith("; later micro-batches of its step read it, and no gradient reaches what is written")
    assert not list(notes_on_writing(configured(LENGTH - 1)))


@pytest.mark.parametrize(("boundary", "before"), [("drop", 6), ("carry", 8)])
def test_documents_that_never_read_their_writes_are_told(boundary: str, before: int) -> None:
    config = configured(6, 2, boundary, "document", length=64)
    assert list(notes_on_writing(config)) == [
        f"Documents of at most {before} tokens never read their own writes (--fwpkm-reset document)"
    ]
    assert reads_own_writes(6, 2, boundary, before + 1) and not reads_own_writes(6, 2, boundary, before)


@pytest.mark.parametrize("boundary", ["drop", "carry"])
def test_no_gradient_reaches_writes_that_are_not_read(boundary: str) -> None:
    last = {"drop": 6, "carry": 8}[boundary]
    assert not reaches_targets(6, 2, boundary, last) and reaches_targets(6, 2, boundary, last + 4)


def test_one_micro_batch_is_known_without_the_number_of_processes() -> None:
    """A dry run said that later sequences read it, and the run was refused."""
    assert len(list(chunk_problems(configured(LENGTH, reset="step", batch=1)))) == 1
    assert not list(chunk_problems(configured(LENGTH, reset="step", batch=2)))


@pytest.mark.parametrize("reset", ["step", "document"])
def test_a_frozen_memory_forgets_nothing(reset: str) -> None:
    assert not list(chunk_problems(configured(LENGTH, reset=reset, inner_lr=0.0), 1))


def test_the_issue_s_case() -> None:
    (said,) = chunk_problems(configured(512, length=64))
    assert said == (
        "--fwpkm-chunk-size 512 is longer than --seq-length 64, but a chunk cannot span sequences; "
        "use a chunk of at most 64"
    )


def test_a_sequence_too_short_for_any_chunk() -> None:
    (said,) = chunk_problems(configured(4, 3, "carry", "document", length=4))
    assert said.endswith("; use longer sequences")


def test_a_frozen_memory_is_said() -> None:
    assert list(notes_on_writing(configured(4, inner_lr=0.0))) == ["The memory is never written (--fwpkm-inner-lr 0)"]
