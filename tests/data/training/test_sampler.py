"""The sampler: every sample once, whatever the ranks, and continued where a run stopped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_fwpkm.data.training.sampler import ResumableSampler, build_loader


class Counting(torch.utils.data.Dataset[dict[str, Any]]):
    """Windows that hold their own index."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        window = torch.full((4,), index)
        fields = dict.fromkeys(("tokens", "labels", "loss_mask", "position_ids", "document_starts"), window)
        return {"dataset_id": 3, **fields}


@given(
    groups=st.integers(0, 5),
    spare=st.integers(0, 11),
    micro=st.integers(1, 3),
    ranks=st.integers(1, 4),
    start=st.integers(0, 5),
)
def test_each_sample_goes_to_one_rank(groups: int, spare: int, micro: int, ranks: int, start: int) -> None:
    group = micro * ranks
    total = groups * group + spare % group
    start = min(start, groups)
    shards = [
        list(
            ResumableSampler(
                total, micro_batch_size=micro, data_parallel_rank=rank, data_parallel_size=ranks,
                consumed_samples=start * group,
            )
        )
        for rank in range(ranks)
    ]  # fmt: skip
    assert all(len(batch) == micro for shard in shards for batch in shard)
    in_order = [index for step in zip(*shards, strict=True) for batch in step for index in batch]
    assert in_order == list(range(start * group, groups * group))


def test_the_set_of_a_step_does_not_depend_on_ranks() -> None:
    def first_step(ranks: int) -> set[int]:
        micro_batches = 12 // (2 * ranks)
        samplers = [
            ResumableSampler(
                48, micro_batch_size=2, data_parallel_rank=rank, data_parallel_size=ranks, consumed_samples=12
            )
            for rank in range(ranks)
        ]
        return {index for sampler in samplers for batch in list(sampler)[:micro_batches] for index in batch}

    assert first_step(1) == first_step(2) == first_step(3) == set(range(12, 24))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_resumes_restarts_and_leaves_the_global_generator_alone(num_workers: int) -> None:
    def load(consumed: int) -> Any:
        return build_loader(Counting(), micro_batch_size=3, consumed_samples=consumed, num_workers=num_workers)

    before = torch.get_rng_state()
    loader = load(0)
    whole, again = ([batch["tokens"][:, 0].tolist() for batch in loader] for _ in range(2))
    assert whole == again == [list(range(i, i + 3)) for i in range(0, 24, 3)]
    assert [batch["tokens"][:, 0].tolist() for batch in load(12)] == whole[4:]
    assert set(next(iter(loader))) == {"tokens", "labels", "loss_mask", "position_ids", "document_starts"}
    assert torch.equal(before, torch.get_rng_state())


def test_positions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="has consumed 30 samples, but its dataset has 24"):
        ResumableSampler(24, micro_batch_size=1, consumed_samples=30)
    with pytest.raises(ValueError, match="5 consumed samples are not divisible by --micro-batch-size 2 times 1"):
        ResumableSampler(24, micro_batch_size=2, consumed_samples=5)


def test_the_first_samples_come_again_for_those_that_were_left_out():
    sampler = ResumableSampler(12, micro_batch_size=2, consumed_samples=8, left_out_samples=4)
    assert len(sampler) == 4 and list(sampler) == [[8, 9], [10, 11], [0, 1], [2, 3]]
    with pytest.raises(ValueError, match="has consumed 18 samples"):
        ResumableSampler(12, micro_batch_size=2, consumed_samples=18, left_out_samples=4)
