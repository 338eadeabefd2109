"""Weights & Biases: one run for a run, whatever fails there; with a pretended library and with the real one offline."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_fwpkm.config import LoggingConfig, PretrainConfig
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.training import wandb_run
from megatron_fwpkm.training.metrics import EveryInterval, MetricsLog
from megatron_fwpkm.training.wandb_run import RUN_FILE, WandbRun, check_wandb
from tests.test_pretrain import flags, start, write_dataset

CONFIG = replace(PretrainConfig(), logging=LoggingConfig(wandb_project="memories"))


class Failed(Exception):
    """wandb.errors.Error"""


class Misused(Failed):
    """wandb.errors.UsageError"""


class Library:
    """A wandb that keeps what it is given."""

    errors = SimpleNamespace(Error=Failed, UsageError=Misused, AuthenticationError=Misused)

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.refuses: Exception | None = None
        self.finished = 0
        self.mode = "online"
        self.key: str | Exception | None = None

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify
        if isinstance(self.key, Exception):
            raise self.key
        return self.key is not None

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def init(self, **options: Any) -> Library:
        if self.refuses is not None and "mode" not in options:
            raise self.refuses
        self.begun.append(options)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "iteration")

    def log(self, values: dict[str, Any]) -> None:
        if values.get("train/loss") == 13.0:
            raise Failed("the disk is full")
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    pretended = Library()
    monkeypatch.setitem(sys.modules, "wandb", pretended)  # type: ignore[arg-type]
    return pretended


def train(folder: Path, start: int, *iterations: int, loss: float = 2.0) -> None:
    with MetricsLog([EveryInterval(WandbRun(CONFIG, folder, start), 10)]) as log:
        for iteration in iterations:
            log.write("train", {"iteration": iteration, "loss": loss, "memory": {"3": {"gate_mean": 0.5}}})
        log.write("end", {"iteration": iterations[-1], "reason": "finished", "tokens": 7})


def test_a_resumed_run_continues_and_sends_nothing_twice(tmp_path: Path, library: Library) -> None:
    train(tmp_path, 0, 10, 15, 20)
    train(tmp_path, 10, 20, 30)
    first, second = library.begun
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert (first["project"], first["name"], first["dir"]) == ("memories", tmp_path.name, str(tmp_path))
    assert first["config"]["model"]["num_layers"] == CONFIG.model.num_layers
    assert [values["iteration"] for values in library.logged if "train/loss" in values] == [10, 20, 30]
    assert library.logged[0] == {"iteration": 10, "train/loss": 2.0, "train/memory/3/gate_mean": 0.5}
    assert library.logged[-1] == {"iteration": 30, "end/tokens": 7}
    assert library.finished == 2
    train(tmp_path, 0, 10)
    assert library.begun[2]["id"] != first["id"], "a new run in the folder of another"


def test_a_rewound_run_sends_its_iterations_again(tmp_path: Path, library: Library) -> None:
    with MetricsLog([EveryInterval(WandbRun(CONFIG, tmp_path, 0), 10)]) as log:
        for iteration in (10, 20, 30):
            log.write("train", {"iteration": iteration, "loss": 2.0})
        log.go_back(10)
        assert json.loads((tmp_path / RUN_FILE).read_text())["last_iteration"] == 10, "in case of a kill right now"
        log.write("rewind", {"iteration": 10, "failed_iteration": 31})
        for iteration in (10, 20):
            log.write("train", {"iteration": iteration, "loss": 1.0})
    sent = [(values["iteration"], values.get("train/loss")) for values in library.logged]
    assert sent == [(10, 2.0), (20, 2.0), (30, 2.0), (10, None), (20, 1.0)]
    assert library.logged[3] == {"iteration": 10, "rewind/failed_iteration": 31}


def test_a_damaged_file_begins_a_run(tmp_path: Path, library: Library) -> None:
    (tmp_path / RUN_FILE).write_text('{"id": "ab')
    train(tmp_path, 10, 20)
    assert json.loads((tmp_path / RUN_FILE).read_text()) == {"id": library.begun[0]["id"], "last_iteration": 20}


def test_what_fails_is_said_once(tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(tmp_path, 0, 10, 20, loss=13.0)
    assert caplog.text.count("the disk is full; training continues") == 1
    assert json.loads((tmp_path / RUN_FILE).read_text())["last_iteration"] == 20, "of the record `end`"


def test_without_a_server_it_goes_offline(tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture) -> None:
    library.refuses = Failed("no answer")
    with caplog.at_level(logging.WARNING):
        train(tmp_path, 0, 10)
    assert "no answer; the records stay in" in caplog.text
    assert library.begun[0]["mode"] == "offline" and len(library.logged) == 2


def test_without_a_login_it_is_refused(tmp_path: Path, library: Library) -> None:
    library.refuses = Misused("No API key configured")
    with pytest.raises(ValueError, match="No API key configured. Log in with `wandb login`, set WANDB_MODE=offline"):
        WandbRun(CONFIG, tmp_path, 0)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_run.importlib.util, "find_spec", lambda name: object())


def test_the_login_is_looked_for_at_the_start(library: Library, known: None) -> None:
    with pytest.raises(ValueError, match="--wandb-project memories: no API key is configured. Log in with `wandb logi"):
        check_wandb(CONFIG.logging)
    library.key = Misused("WANDB_API_KEY invalid:\nit is too short.")
    with pytest.raises(ValueError, match="--wandb-project memories: WANDB_API_KEY invalid: it is too short. Log in"):
        check_wandb(CONFIG.logging)
    for library.mode, library.key in (("online", "a key"), ("offline", None), ("disabled", None)):
        check_wandb(CONFIG.logging)
    check_wandb(LoggingConfig())


def test_a_run_without_a_login_writes_nothing(
    tmp_path: Path, library: Library, known: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "numbers")
    assert start(flags(data, save=tmp_path / "run", wandb_project="memories")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: --wandb-project memories: no API key") and said.count("\n") == 1
    assert not (tmp_path / "run").exists() and library.begun == []


def test_a_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--wandb-project memories needs the wandb package: pip install wandb"):
        check_wandb(CONFIG.logging)
    check_wandb(LoggingConfig())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--wandb-entity", "us"], "--wandb-entity us has no effect without --wandb-project"),
        (["--tensorboard-log-interval", "20"], "has no effect without --tensorboard-dir or --wandb-project"),
        (
            ["--wandb-project", "p", "--tensorboard-log-interval", "15"],
            "--tensorboard-log-interval 15 must be a multiple of --log-interval 10",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(flags: list[str], said: str) -> None:
    (found,) = problems(parse_pretrain(["--dry-run", *flags]).config)
    assert said in found


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_the_real_library_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    check_wandb(CONFIG.logging)
    train(tmp_path, 0, 10, 20)
    train(tmp_path, 20, 30)
    with MetricsLog([EveryInterval(WandbRun(CONFIG, tmp_path, 30), 10)]) as log:
        log.write("train", {"iteration": 40, "loss": 2.0})
        run = log._sinks[0]._sink._run  # type: ignore[attr-defined]
        before = run.step
        log.go_back(30)
        log.write("train", {"iteration": 40, "loss": 1.0})
        assert run.step == before + 1 and run.summary["iteration"] == 40, "the library's own step goes on"
    runs = [folder.name for folder in (tmp_path / "wandb").glob("offline-run-*")]
    run_id = json.loads((tmp_path / RUN_FILE).read_text())["id"]
    assert runs and all(run_id in name for name in runs)
    assert any((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
