"""--skip-train: evaluates a checkpoint's model, and leaves everything as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_fwpkm.training.metrics import JsonRecord, read_records
from tests.test_pretrain import flags, start, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four iterations, evaluated after the last."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    assert start(flags(data, save=folder, train_iters=4, eval_interval=4)) == 0
    return folder


def measured(path: Path) -> dict[str, tuple[int, float]]:
    """(iteration, LM loss) of every split."""
    records = read_records(path / "metrics.jsonl")
    return {r["kind"]: (r["iteration"], r["lm_loss"]) for r in records if r["kind"] in ("evaluation", "test")}


def last(path: Path) -> JsonRecord:
    return read_records(path / "metrics.jsonl")[-1]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_s_latest_checkpoint(data: str, run: Path, tmp_path: Path) -> None:
    before = files(run)
    again = flags(data, save=run, resume=True, train_iters=4, log_dir=tmp_path / "log")
    assert start([*again, "--skip-train"]) == 0
    assert measured(tmp_path / "log") == measured(run) and measured(run).keys() == {"evaluation", "test"}
    assert last(tmp_path / "log")["reason"] == "evaluated without training"
    assert files(run) == before


def test_more_or_fewer_iterations_than_it_has_make_no_difference(data: str, run: Path, tmp_path: Path) -> None:
    """No step is made towards 20, and nothing is asked of data that 2 would not have."""
    for iterations in (2, 20):
        log = tmp_path / str(iterations)
        words = flags(data, load=run, train_iters=iterations, log_dir=log, split="80,10,10")
        assert start([*words, "--skip-train"]) == 0
        assert measured(log)["evaluation"][0] == measured(log)["test"][0] == 4
        assert last(log)["iteration"] == 4 and last(log)["tokens"] == 0


def test_records_of_a_run_are_left_alone_without_a_folder_of_logs(
    data: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(run)
    assert start([*flags(data, save=run, resume=True, train_iters=4), "--skip-train"]) == 0
    assert files(run) == before
    assert len(list(tmp_path.glob("runs/*/metrics.jsonl"))) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"eval_iters": 0}, "--skip-train only evaluates, but --eval-iters 0 disables evaluation"),
        ({"save": "new"}, "--skip-train saves nothing in --save new: give --resume"),
    ],
)
def test_what_leaves_nothing_to_do_is_refused(
    data: str, more: dict[str, object], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start([*flags(data, **more), "--skip-train"]) == 1
    assert said in capfd.readouterr().err
