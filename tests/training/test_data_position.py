"""A resumed run's data: where it goes on, and what is said when it cannot go on in the same order."""

from __future__ import annotations

import logging

import pytest

from megatron_fwpkm.config import PretrainConfig, TrainingConfig
from megatron_fwpkm.training.checkpointing import TrainingProgress
from megatron_fwpkm.training.pretraining import check_data_position

CONFIG = PretrainConfig(training=TrainingConfig(train_iters=12))


def test_a_new_run_notes_the_size_of_its_dataset(caplog):
    progress = TrainingProgress()
    check_data_position(CONFIG, progress, 48, 4)
    assert progress.dataset_windows == 48 and not caplog.records


def test_too_few_windows_are_refused_before_training():
    progress = TrainingProgress(iteration=6, consumed_samples=48, dataset_windows=96)
    with pytest.raises(ValueError, match=r"consumed 48 samples and needs 24 more.*--global-batch-size 4.*has only 48:"):
        check_data_position(CONFIG, progress, 48, 4)


def test_another_order_of_the_data_is_said(caplog):
    progress = TrainingProgress(iteration=6, consumed_samples=24, dataset_windows=328)
    with caplog.at_level(logging.WARNING):
        check_data_position(CONFIG, progress, 984, 4)
    assert "had 328 windows and now has 984" in caplog.text
    assert progress.dataset_windows == 984


def test_the_same_dataset_goes_on_in_silence(caplog):
    check_data_position(CONFIG, TrainingProgress(iteration=6, consumed_samples=24, dataset_windows=48), 48, 4)
    assert not caplog.records
