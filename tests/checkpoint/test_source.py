"""Which checkpoint a run starts from: --resume, --load, --ckpt-step, --exit-on-missing-checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.checkpoint.manager import CheckpointManager
from megatron_fwpkm.checkpoint.source import Source, find_source
from megatron_fwpkm.config import CheckpointConfig
from tests.checkpoint.test_manager import save


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The run's --save with iterations 10, 20 and 30."""
    manager = CheckpointManager(tmp_path / "own", keep_last=0)
    for iteration in (10, 20, 30):
        save(manager, iteration)
    return manager.root


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another run, with iterations 5 and 7."""
    manager = CheckpointManager(tmp_path / "other", keep_last=0)
    for iteration in (5, 7):
        save(manager, iteration)
    return manager.root


def find(**values: Any) -> Source | None:
    return find_source(CheckpointConfig(**{name: str(v) if isinstance(v, Path) else v for name, v in values.items()}))


def test_the_latest_or_the_step_that_is_named(own: Path, other: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    assert find(save=own) is None
    assert find(save=own, resume=True) == Source(own / "iter_0000030", True)
    assert find(save=own, resume=True, ckpt_step=10) == Source(
        own / "iter_0000010", True, ("iter_0000020", "iter_0000030")
    )
    assert find(save=own, resume=True, ckpt_step=30) == Source(own / "iter_0000030", True)
    assert find(load=other) == Source(other / "iter_0000007", False)
    assert find(load=other, ckpt_step=5) == Source(other / "iter_0000005", False)
    assert find(load=other / "iter_0000005") == Source(other / "iter_0000005", False)
    assert find(save=empty, resume=True) is None
    assert find(save=empty, resume=True, load=other, ckpt_step=5) == Source(other / "iter_0000005", False)
    # A run that began at another's step goes on where it is itself when it is started again.
    assert find(save=own, resume=True, load=other, ckpt_step=5) == Source(own / "iter_0000030", True)


def test_what_is_not_there_is_refused(own: Path, other: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    with pytest.raises(ValueError, match=r"--ckpt-step 15: .*own contains no iter_0000015, only iter_0000010, iter_0"):
        find(save=own, resume=True, ckpt_step=15)
    with pytest.raises(ValueError, match=r"--ckpt-step 15: .*empty contains no iter_0000015, and no other checkpoint"):
        find(save=empty, resume=True, ckpt_step=15)
    with pytest.raises(
        ValueError, match=r"--load .*iter_0000005 is already a single checkpoint: use --load .*other, or"
    ):
        find(load=other / "iter_0000005", ckpt_step=5)
    with pytest.raises(ValueError, match=r"nowhere is not a folder"):
        find(load=tmp_path / "nowhere", ckpt_step=5)
    with pytest.raises(
        ValueError, match=r"empty contains no checkpoint to --resume from, and --exit-on-missing-checkpoint"
    ):
        find(save=empty, resume=True, exit_on_missing_checkpoint=True)
    assert find(save=empty, resume=True, load=other, exit_on_missing_checkpoint=True) is not None
