"""`examples/serving`: sessions answer as they do alone, stay small, and join and leave between rounds."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.hf.builders import small_model

SCRIPT = Path(__file__).resolve().parents[2] / "examples/serving/serve_sessions.py"
TEXT = "The parson's garden lay behind the church, and nobody but he had the key. " * 20


def _load_script() -> Any:
    spec = importlib.util.spec_from_file_location("serve_sessions", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


serving = _load_script()


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line for a tiny model, whose 64 slots a session touches all."""
    (tmp_path / "text.txt").write_text(TEXT)
    tiny = small_model(3, vocab_size=256, eos_token_id=7, attention_windows=[6, None])
    monkeypatch.setattr(serving, "random_model", lambda: tiny)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    sizes = ["--read-tokens", "64", "--new-tokens", "5", "--rounds", "2"]
    return ["--random", "--text", str(tmp_path / "text.txt"), *sizes]


def test_sessions_answer_as_alone_and_take_turns(arguments: list[str]) -> None:
    args = serving.build_parser().parse_args([*arguments, "--check"])
    model, ids = serving.load(args)
    row, everyone = serving.measure(model, ids, 4, args)
    assert [len(one.answers) for one in everyone] == [1, 2, 2, 2, 1]
    assert len({tuple(one.answers[0]) for one in everyone}) > 1, "the sessions must not all say the same"
    everyone[0].answers[0][-1] ^= 1
    with pytest.raises(ValueError, match="answers otherwise alone"):
        serving.check_alone(model, everyone[0], args.new_tokens)
    assert row.bytes_max >= row.bytes_mean > 64 * 12 * 8, "the rows of all slots belong to the session"
    assert row.table_bytes == 64 * 12 * 8 + 2 * 8 * 4 * 8


@pytest.mark.parametrize("name", ["out/rows.json", "rows.csv"])
def test_the_table_is_printed_and_saved(
    name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = serving.main([*arguments, "--rounds", "1", "--sessions", "1", "2", "--output", str(tmp_path / name)])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in printed[2:]] == ["| 1", "| 2"]
    saved: Any = (tmp_path / name).read_text()
    saved = json.loads(saved) if name.endswith("json") else list(csv.DictReader(saved.splitlines()))
    assert [int(row["bytes_max"]) for row in saved] == [row.bytes_max for row in rows]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--sessions", "0"], 2, "argument --sessions: 0 must be at least 1"),
        (["--read-tokens", "63"], 2, "argument --read-tokens: 63 must be at least 64"),
        (["--rounds", "7"], 2, "argument --rounds: invalid choice: 7"),
        (["--text", "none.txt"], 1, "error: --text none.txt is not UTF-8 text, plain or gzip: "),
        (["--text", "binary"], 1, "error: --text binary is not UTF-8 text, plain or gzip: "),
        (["--text", "empty"], 1, "error: --text empty is empty"),
    ],
)
def test_wrong_words_are_named(
    words: list[str], status: int, message: str, arguments: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(SystemExit) as left:
        serving.main([*arguments, *words])
    assert left.value.code == status and message in capsys.readouterr().err


def test_a_model_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text(TEXT)
    with pytest.raises(SystemExit):
        serving.main(["--model", str(tmp_path / "none"), "--text", str(tmp_path / "text")])
    assert "none is not the folder of an exported model (nothing is downloaded)" in capsys.readouterr().err


def test_a_text_that_is_too_short_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    serving.main([*arguments, "--rounds", "1", "--sessions", "1", "40"])
    assert capsys.readouterr().err == "40 sessions read 2,560 tokens, but the text has 1,480: parts are read again\n"


def test_an_export_is_loaded_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration is code, for which Transformers asks at the terminal unless it is trusted."""
    trusted: list[bool] = []

    def loaded(_: str, trust_remote_code: bool = False) -> Any:
        trusted.append(trust_remote_code)
        return SimpleNamespace(eval=lambda: "model")

    def tokenizer(folder: str, **options: bool) -> Any:
        loaded(folder, **options)
        return lambda text, add_special_tokens: SimpleNamespace(input_ids=[len(text)])

    monkeypatch.setattr(serving, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=loaded))
    monkeypatch.setattr(serving, "AutoTokenizer", SimpleNamespace(from_pretrained=tokenizer))
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "config.json").touch()
    args = serving.build_parser().parse_args(["--model", str(tmp_path), "--text", str(tmp_path / "text.txt")])
    assert serving.load(args) == ("model", torch.tensor([len(TEXT)]))
    assert trusted == [True, True]
