"""What a reset restores: how much that is, that it is what is really kept, and that too much of it is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_fwpkm.config import FwPKMConfig, ModelConfig, ParallelConfig, PretrainConfig
from megatron_fwpkm.config.undo_log_bytes import JOURNAL_SPARE_ROWS, touchable_slots
from megatron_fwpkm.ops import ResetJournal
from megatron_fwpkm.training.memory_estimate import check_tables_fit, estimate_memory
from tests.training.test_memory_estimate import BASE


def with_memory(config: PretrainConfig, **options: Any) -> PretrainConfig:
    """The same configuration with another memory."""
    return replace(config, fwpkm=replace(config.fwpkm, **options))


@pytest.mark.parametrize(("topk", "slots"), [(2, 2 * 256 * 2), (8, 64**2)])
def test_a_journal_keeps_as_many_bytes_as_are_counted(topk: int, slots: int) -> None:
    """A row for every read of a step, but not more than there are slots."""
    config = with_memory(BASE, reset="step", topk=topk)
    assert touchable_slots(config, 1) == slots
    journal = ResetJournal(64**2, room=slots, counts=False)
    journal.record_rows(torch.arange(7), torch.zeros(7, 64))
    kept = sum(x.nbytes for x in vars(journal).values() if isinstance(x, torch.Tensor) and x.dim())
    counted, plain = (estimate_memory(one, 512, 1).undo_log for one in (config, with_memory(config, reset="never")))
    assert counted - plain == (slots + JOURNAL_SPARE_ROWS) * (4 * 64 + 8) == kept - 64**2


def test_writes_that_are_undone_at_once_need_no_journal() -> None:
    """Those of a document, and of a sequence that owns its memory, also where a step may be skipped."""
    for on_nan in ("stop", "skip"):
        config = replace(BASE, faults=replace(BASE.faults, on_nan=on_nan))
        owned = estimate_memory(with_memory(config, reset="step", owner="sequence"), 512, 1)
        documents = estimate_memory(with_memory(config, reset="document"), 512, 1)
        assert owned.undo_log == documents.undo_log


def test_journals_that_do_not_fit_beside_their_tables_are_refused() -> None:
    config = PretrainConfig(
        model=ModelConfig(num_layers=4),
        fwpkm=FwPKMConfig(layer_numbers=(1, 2, 3), num_subkeys=64, value_dim=256, key_dim=32, reset="step"),
        parallel=ParallelConfig(pipeline_model_parallel_size=2, tensor_model_parallel_size=2),
    )
    table = (64 * 64 * 256 + 64 * 32) * 4 // 2
    journal = 64 * 64 + (64 * 64 + JOURNAL_SPARE_ROWS) * (256 * 4 // 2 + 8)
    check_tables_fit(config, 2 * (table + journal))
    with pytest.raises(ValueError, match="and what --fwpkm-reset step and --on-nan skip put back 4.3 MiB more, but"):
        check_tables_fit(config, 2 * (table + journal) - 1)
    check_tables_fit(with_memory(config, reset="never"), 2 * table)
