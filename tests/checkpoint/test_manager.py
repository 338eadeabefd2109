"""Publishing is all or nothing, `latest` is always good, retention spares it, bad folders are refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_fwpkm.checkpoint import manager as module
from megatron_fwpkm.checkpoint.manager import CheckpointManager, latest_checkpoint, published, resolve_checkpoint
from megatron_fwpkm.checkpoint.record import Layout, RunRecord, read_record

LAYOUT = Layout(1, 1, 1, 1, False, False)


def record(iteration: int) -> RunRecord:
    return RunRecord(iteration, 2 * iteration, 64 * iteration, LAYOUT, 100, 128, "abc", None, {"losses": [0.1 + 0.2]})


def save(manager: CheckpointManager, iteration: int, text: str = "weights") -> Path:
    with manager.publish(iteration, record(iteration)) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "shard.bin").write_text(text)
    return manager.root / f"iter_{iteration:07d}"


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_publish_and_read_back(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", keep_last=3)
    manager.prepare(resume=False)
    assert latest_checkpoint(manager.root) is None
    folder = save(manager, 20)
    assert names(manager.root) == ["iter_0000020", "latest"]
    assert resolve_checkpoint(manager.root) == resolve_checkpoint(folder) == folder
    read = read_record(folder)
    assert read.files == {"model/shard.bin": 7}
    assert read.loop["losses"] == [0.1 + 0.2]  # bit for bit
    assert read.layout == LAYOUT


def test_an_error_while_writing_publishes_nothing(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=3)
    good = save(manager, 10)
    with pytest.raises(OSError, match="disk is full"), manager.publish(20, record(20)) as folder:
        (folder / "half").write_text("x")
        raise OSError("disk is full")
    assert resolve_checkpoint(tmp_path) == good
    assert [path.name for path in published(tmp_path)] == ["iter_0000010"]
    save(manager, 30)
    assert ".iter_0000020.partial" not in names(tmp_path)  # swept by the next success


@pytest.mark.parametrize("step", ["write_record", "_sync", "replace"])
def test_a_crash_at_any_step_of_publishing_leaves_a_good_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    manager = CheckpointManager(tmp_path, keep_last=1)
    good = save(manager, 10)

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os if step == "replace" else module, step, crash)
    with pytest.raises(KeyboardInterrupt):
        save(manager, 20)
    monkeypatch.undo()
    assert resolve_checkpoint(tmp_path) == good
    read_record(good)
    assert resolve_checkpoint(tmp_path).name == "iter_0000010"
    save(manager, 20)
    assert names(tmp_path) == ["iter_0000020", "latest"]


def test_without_a_marker_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=0)
    save(manager, 10), save(manager, 20)
    (tmp_path / "latest").unlink()
    (tmp_path / "iter_0000030").mkdir()  # a foreign folder without a record
    assert resolve_checkpoint(tmp_path).name == "iter_0000020"


def test_retention_keeps_the_last_and_what_latest_names(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=2)
    for iteration in (10, 20, 30, 40):
        save(manager, iteration)
    assert names(tmp_path) == ["iter_0000030", "iter_0000040", "latest"]
    everything = CheckpointManager(tmp_path / "all", keep_last=0)
    for iteration in (10, 20, 30):
        save(everything, iteration)
    assert len(published(everything.root)) == 3


def test_retention_spares_multiples_of_the_retain_interval(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=1, retain_interval=20)
    for iteration in (10, 20, 30, 40, 50, 70):
        save(manager, iteration)
    assert [path.name for path in published(tmp_path)] == ["iter_0000020", "iter_0000040", "iter_0000070"]


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=3)
    save(manager, 10), save(manager, 20)
    (tmp_path / "latest").write_text("iter_0000010\n")  # a user went back
    save(manager, 20, "other weights")
    assert names(tmp_path) == ["iter_0000010", "iter_0000020", "latest"]
    assert (tmp_path / "iter_0000020" / "model" / "shard.bin").read_text() == "other weights"


def test_going_back_leaves_no_checkpoint_of_another_course(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=3)
    for iteration in (10, 20, 30):
        save(manager, iteration)
    assert manager.go_back(10, newest=30) is None and len(published(tmp_path)) == 3
    assert manager.go_back(25, newest=30) == tmp_path / "iter_0000020" == latest_checkpoint(tmp_path)
    assert names(tmp_path) == [".iter_0000030.replaced", "iter_0000010", "iter_0000020", "latest"]
    save(manager, 28)
    assert manager.go_back(40, newest=20) == tmp_path / "iter_0000020", "28 is not of the course of this run"
    save(manager, 40)
    assert names(tmp_path) == ["iter_0000010", "iter_0000020", "iter_0000040", "latest"]


def test_a_partial_that_is_being_written_is_not_swept(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=1)
    with manager.publish(30, record(30)) as partial:
        (partial / "model").mkdir()
        save(CheckpointManager(tmp_path, keep_last=1), 20)
        assert partial.is_dir()
    assert latest_checkpoint(tmp_path) == tmp_path / "iter_0000030"


def test_prepare_refuses_to_mix_runs_and_unwritable_folders(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", keep_last=1)
    save(manager, 10)
    manager.prepare(resume=True)
    with pytest.raises(ValueError, match=r"--save .*run already contains iter_0000010; continue with --resume"):
        manager.prepare(resume=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--save .*file cannot be written: File exists"):
        CheckpointManager(tmp_path / "file", keep_last=1).prepare(resume=False)
    with pytest.raises(ValueError, match=r"--save .* cannot be written: Not a directory"):
        CheckpointManager(tmp_path / "file" / "below", keep_last=1).prepare(resume=False)


def test_bad_folders_are_refused_with_their_reason(tmp_path: Path) -> None:
    folder = save(CheckpointManager(tmp_path, keep_last=3), 10)
    (folder / "model" / "shard.bin").write_text("cut")
    with pytest.raises(ValueError, match=r"iter_0000010 is damaged: model/shard.bin has 3 bytes instead of 7"):
        read_record(folder)
    (folder / "model" / "shard.bin").unlink()
    with pytest.raises(ValueError, match=r"incomplete: model/shard.bin is missing; use an earlier checkpoint"):
        read_record(folder)
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({k: v for k, v in content.items() if k != "iteration"}))
    with pytest.raises(ValueError, match="run.json is damaged: iteration missing"):
        read_record(folder)
    (folder / "run.json").write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ValueError, match="has format 99, but this version only reads format 1"):
        read_record(folder)
    (folder / "run.json").write_text(json.dumps(content)[:50])
    with pytest.raises(ValueError, match="run.json is damaged: it is not valid JSON"):
        read_record(folder)
    (folder / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is not from a checkpoint of megatron_fwpkm"):
        read_record(folder)


def test_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is not a folder; use the --save folder of a run"):
        resolve_checkpoint(tmp_path / "nowhere")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    with pytest.raises(ValueError, match="has no run.json; it looks like a Megatron-LM checkpoint"):
        read_record(resolve_checkpoint(tmp_path))
    (tmp_path / "latest").write_text("iter_0000044\n")
    with pytest.raises(ValueError, match="names 'iter_0000044', which is not a checkpoint"):
        resolve_checkpoint(tmp_path)
    (tmp_path / ".iter_0000044.partial").mkdir()
    with pytest.raises(ValueError, match="the run ended while it was being saved"):
        read_record(resolve_checkpoint(tmp_path / ".iter_0000044.partial"))
