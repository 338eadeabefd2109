"""pretrain.py and the checkpoint it goes on from: what is taken from there, what from the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.training import pretrain as training
from megatron_fwpkm.training.loop import TrainingLoop
from tests.test_pretrain import flags, start, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two datasets."""
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder / "numbers"), write_dataset(folder / "others", documents=30)


@pytest.fixture(scope="module")
def run(data: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has saved its iterations 2 and 4 of 20."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    assert start(flags(data[0], save=folder, save_interval=2, exit_interval=4)) == 0
    return folder


class Seen(TrainingLoop):
    """What a run would train with and on, without training."""

    instances: list[Seen] = []

    def run(self, train: Iterable[Any], validation: Any, test: Any, places: Any) -> None:
        self.batches = [next(iter(source))["tokens"] for source in (train, validation, test)]
        self.instances.append(self)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    monkeypatch.setattr(training, "TrainingLoop", Seen)
    Seen.instances = []
    return Seen.instances


def go_on(data: tuple[str, str], run: Path, **changes: Any) -> int:
    """The run, resumed."""
    return start(flags(data[0], **{"save": run, "resume": True} | changes))


def test_what_stands_behind_the_engine_may_change(data: tuple[str, str], run: Path, seen: list[Seen]) -> None:
    """--divergence-factor and where the data comes from."""
    ours, other = data
    apart = {"data_path": None, "train_data_path": ours, "valid_data_path": ours, "test_data_path": ours}
    changes: list[dict[str, Any]] = [
        {},
        {"divergence_factor": 3},
        {"data_path": other},
        apart,
        apart | {"train_data_path": other},
        apart | {"valid_data_path": other},
        apart | {"test_data_path": other},
    ]
    for change in changes:
        assert go_on(data, run, **change) == 0
    usual, factor, path, *each = seen
    assert (usual._guard.factor, factor._guard.factor) == (10.0, 3.0)
    assert not any(torch.equal(one, two) for one, two in zip(usual.batches, path.batches, strict=True))
    for number, loop in enumerate(each[1:]):
        same = [torch.equal(one, two) for one, two in zip(each[0].batches, loop.batches, strict=True)]
        assert same == [place != number for place in range(3)]
    assert {loop.progress.iteration for loop in seen} == {4}
