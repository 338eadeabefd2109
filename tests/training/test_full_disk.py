"""A disk that is full while a checkpoint is written: said as such, with bytes, and left with room."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint import CheckpointException

from megatron_fwpkm.checkpoint import checkpoint_errors
from megatron_fwpkm.checkpoint.checkpoint_errors import CheckpointError, explained
from megatron_fwpkm.checkpoint.manager import CheckpointManager, published
from tests.spawned_ranks import run_distributed
from tests.test_pretrain import flags, start, write_dataset

SIZE = 4 << 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for about two of the checkpoints below."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run_of(dataset: str, save: Path, **more: Any) -> list[str]:
    """Checkpoints of about 1.5 MB."""
    sizes = {"fwpkm_num_subkeys": 128, "eval_iters": 0, "split": "1,0,0", "save_interval": 2, "log_dir": save.parent}
    return flags(dataset, save=save, **{**sizes, **more})


def free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def fill(folder: Path, leave: int) -> None:
    with (folder / "ballast").open("wb") as file:
        file.write(bytes(free(folder) - leave))


def test_what_cannot_fit_is_not_begun(dataset: str, small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save = small_disk / "run"
    assert start(run_of(dataset, save, train_iters=2)) == 0
    fill(small_disk, 500_000)
    (save / ".iter_0000001.partial").mkdir()
    assert start(run_of(dataset, save, train_iters=4, resume=True)) == 1
    message = (
        r"error: iter_0000004 was not written to \S+/disk/run: the disk is full. A checkpoint needs about [\d,]+ "
        r"bytes, but only [\d.]+ MiB are free .* continue with --resume.*; the last complete checkpoint is "
        r"\S+/iter_0000002"
    )
    assert re.search(message, capfd.readouterr().err)
    assert [path.name for path in save.iterdir() if path.is_dir()] == ["iter_0000002"]
    (small_disk / "ballast").unlink()
    assert start(run_of(dataset, save, train_iters=4, resume=True)) == 0


@pytest.mark.parametrize("async_save", [None, True])
def test_a_disk_that_fills_while_a_checkpoint_is_written(
    dataset: str,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    async_save: bool | None,
) -> None:
    save, begin = small_disk / "run", CheckpointManager.begin
    assert start(run_of(dataset, save, train_iters=2)) == 0
    room = free(small_disk)

    def begin_and_fill(self: CheckpointManager, *arguments: Any) -> Path:
        folder = begin(self, *arguments)
        fill(small_disk, 200_000)  # somebody else's
        return folder

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "begin", begin_and_fill)
        assert start(run_of(dataset, save, train_iters=6, resume=True, async_save=async_save)) == 1
    error = capfd.readouterr().err
    message = (
        r"error: iter_0000004 could not be written to \S+/disk/run: the disk is full. A checkpoint needs about [\d,]+ "
        r"bytes, but only [\d.]+ MiB are free .*; the incomplete checkpoint was removed \(rank 0: .*; the "
        r"last complete checkpoint is \S+/iter_0000002"
    )
    assert re.search(message, error), error
    assert error.count("\n") == 1, error
    assert sorted(path.name for path in save.iterdir()) == ["iter_0000002", "latest"]
    (small_disk / "ballast").unlink()
    assert free(small_disk) > room - 100_000
    assert start(run_of(dataset, save, train_iters=4, resume=True, async_save=async_save)) == 0
    assert [path.name for path in published(save)] == ["iter_0000002", "iter_0000004"]


def fail_on_a_small_disk(rank: int, world_size: int, argv: list[str]) -> None:
    """Rank 1's writer meets the full disk while rank 0 is done."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    if rank == 1:

        def write(*arguments: Any, results_queue: Any, count_queue: Any, **named: Any) -> Any:
            result = (0, OSError(errno.ENOSPC, "No space left on device"))
            if results_queue is None:
                return result  # to a thread of a newer release of Megatron
            results_queue.put(result)
            count_queue.get()
            count_queue.task_done()
            return None

        FileSystemWriterAsync.write_preloaded_data = staticmethod(write)
    assert start(argv) == 1


@pytest.mark.slow
@pytest.mark.parametrize("async_save", [None, True])
def test_a_full_disk_under_one_of_two_ranks(dataset: str, tmp_path: Path, async_save: bool | None) -> None:
    argv = run_of(dataset, tmp_path / "run", train_iters=4, tensor_model_parallel_size=2, async_save=async_save)
    run_distributed(fail_on_a_small_disk, 2, argv, timeout=120)
    assert os.listdir(tmp_path / "run") == []


def wrapped(error: Exception) -> CheckpointException:
    return CheckpointException("write", {3: (error, None)})  # type: ignore[dict-item]


FORMS = [
    (OSError(errno.ENOSPC, "No space left on device", "model/__0_0.distcp"), "rank 1: No space left on device: model/"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "rank 1: Disk quota exceeded"),
    (wrapped(RuntimeError("Worker failure: [Errno 28] No space left on device")), "rank 3: RuntimeError: Worker fail"),
    (ValueError("[Errno 28] No space left on device: 'run.json'"), "rank 0: ValueError: .Errno 28. No space"),
    (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "rank 1: RuntimeError: .enf"),
    (wrapped(RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")), "rank 3: Runtime"),
]


@pytest.mark.parametrize(("error", "cause"), FORMS)
def test_every_form_of_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str
) -> None:
    monkeypatch.setattr(checkpoint_errors, "free_bytes", lambda root: 5 << 20)
    message = (
        rf"iter_7 could not .*: the disk is full. A checkpoint needs about 9,000,000 bytes, but only 5.0 .*\({cause}"
    )
    with pytest.raises(CheckpointError, match=message), explained(1, "iter_7", tmp_path, 9_000_000):
        raise error


@pytest.mark.parametrize("error", [FORMS[4][0], wrapped(RuntimeError("inline_container")), OSError(errno.EIO, "bad")])
def test_another_failure_is_not_called_a_full_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(CheckpointError, match="iter_7 could not be written to .*rank") as caught:
        with explained(1, "iter_7", tmp_path, 9_000):
            raise error
    assert "full" not in str(caught.value)


def test_a_file_system_without_numbers_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda root: shutil._ntuple_diskusage(0, 0, 0))
    assert checkpoint_errors.check_room("iter_7", tmp_path, 10**18) is None
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="iter_7 was not written to .* the disk is full"):
        checkpoint_errors.check_room("iter_7", tmp_path, 10**18)
    assert os.listdir(tmp_path) == []
