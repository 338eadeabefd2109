"""Which samples a rank sees next, as a function of how many samples the whole run has consumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .datasets import ITEM_KEYS


class ResumableSampler(torch.utils.data.Sampler[list[int]]):
    """Micro-batches of indices in order; shuffling and epochs are the dataset's.

    The run's samples form one sequence 0, 1, 2, ...; each group of micro_batch_size * data_parallel_size of them goes
    to the data-parallel ranks in turn, micro_batch_size each. Which samples a step uses therefore does not depend on
    how many ranks there are. Iterating again starts again at `consumed_samples` (validation repeats itself exactly); an
    incomplete last group is dropped.
    """

    def __init__(
        self,
        total_samples: int,
        *,
        micro_batch_size: int,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
        consumed_samples: int = 0,
        left_out_samples: int = 0,
    ) -> None:
        """`consumed_samples` is the position, with the `left_out_samples` before it that no step used.

        For them the first samples come once more at the end. Raises ValueError when the position does not fit the
        dataset or does not fall between two groups.
        """
        assert micro_batch_size > 0 and 0 <= data_parallel_rank < data_parallel_size
        group = micro_batch_size * data_parallel_size
        if not 0 <= consumed_samples <= total_samples + left_out_samples:
            raise ValueError(
                f"the run has consumed {consumed_samples} samples, but its dataset has {total_samples}; "
                f"--train-iters or --global-batch-size was reduced, or the data changed"
            )
        if consumed_samples % group:
            raise ValueError(
                f"{consumed_samples} consumed samples are not divisible by --micro-batch-size {micro_batch_size} times "
                f"{data_parallel_size} data-parallel ranks; resume with sizes that divide them"
            )
        self.total_samples = total_samples
        self.end = total_samples + left_out_samples
        self.consumed_samples = consumed_samples
        self.micro_batch_size = micro_batch_size
        self.group = group
        self.offset = data_parallel_rank * micro_batch_size

    def __len__(self) -> int:
        """Micro-batches of this rank that are left."""
        return (self.end - self.consumed_samples) // self.group

    def __iter__(self) -> Iterator[list[int]]:
        """The micro-batches from `consumed_samples` on."""
        for number in range(len(self)):
            begin = self.consumed_samples + number * self.group + self.offset
            yield [position % self.total_samples for position in range(begin, begin + self.micro_batch_size)]


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack windows to a batch: every field [b, s]."""
    return {key: torch.stack([item[key] for item in items]) for key in ITEM_KEYS}


def build_loader(
    dataset: torch.utils.data.Dataset[Any],
    *,
    micro_batch_size: int,
    data_parallel_rank: int = 0,
    data_parallel_size: int = 1,
    consumed_samples: int = 0,
    left_out_samples: int = 0,
    num_workers: int = 0,
) -> torch.utils.data.DataLoader[dict[str, torch.Tensor]]:
    """A loader of micro-batches (`tokens`, `labels`, `loss_mask`, `position_ids`, `document_starts`, each [b, s]) for
    one rank.

    It draws nothing from torch's global generator, so that loading does not disturb dropout and a resumed run stays bit
    for bit. Raises ValueError as `ResumableSampler` does.
    """
    sampler = ResumableSampler(
        len(dataset),  # type: ignore[arg-type]
        micro_batch_size=micro_batch_size,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=data_parallel_size,
        consumed_samples=consumed_samples,
        left_out_samples=left_out_samples,
    )
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(0),
    )
