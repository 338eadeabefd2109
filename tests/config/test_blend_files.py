"""--data-args-path and --per-split-data-args-path: files for the words of --data-path and its like."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.config.loading import parse_pretrain


def test_the_words_of_a_file_are_those_of_data_path(tmp_path: Path) -> None:
    path = tmp_path / "blend.txt"
    path.write_text("0.7 books\n0.3\tweb\n")
    resolved = parse_pretrain(["--data-args-path", str(path)])
    assert resolved.config.data.data_path == ("0.7", "books", "0.3", "web")
    assert resolved.config.data.data_args_path is None
    assert resolved.value_sources["--data-path"] == str(path)


def test_a_saved_configuration_reads_back_without_the_file(tmp_path: Path) -> None:
    path, saved = tmp_path / "blend.txt", tmp_path / "config.yaml"
    path.write_text("books")
    resolved = parse_pretrain(["--data-args-path", str(path)])
    saved.write_text(resolved.to_yaml())
    path.unlink()
    assert parse_pretrain(["--config", str(saved)]).config == resolved.config


def test_a_json_file_holds_a_blend_per_split(tmp_path: Path) -> None:
    path, yaml = tmp_path / "blend.json", tmp_path / "run.yaml"
    path.write_text(json.dumps({"train": "0.5 books 0.5 web", "valid": ["1", "held", 2, "out"], "test": None}))
    yaml.write_text(f"per-split-data-args-path: {path}\n")
    data = parse_pretrain(["--config", str(yaml)]).config.data
    assert data.train_data_path == ("0.5", "books", "0.5", "web")
    assert data.valid_data_path == ("1", "held", "2", "out")
    assert data.test_data_path == () and data.per_split_data_args_path is None


@pytest.mark.parametrize(
    ("flags", "content", "said"),
    [
        (["--data-args-path", "FILE", "--data-path", "b"], "a", "--data-args-path FILE and --data-path are mutually"),
        (["--data-args-path", "FILE"], " \n", "FILE is empty: it must contain"),
        (["--per-split-data-args-path", "FILE"], "{", "--per-split-data-args-path FILE is not JSON: "),
        (["--per-split-data-args-path", "FILE"], {"validation": "a", "train": "b"}, "FILE must contain {"),
        (["--per-split-data-args-path", "FILE"], {"valid": "a"}, "FILE must contain {"),
        (["--per-split-data-args-path", "FILE"], {"train": {"a": 1}}, "FILE, train must be a prefix or"),
        (["--per-split-data-args-path", "FILE", "--valid-data-path", "v"], {"train": "b"},
         "--per-split-data-args-path FILE and --valid-data-path are mutually exclusive"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(flags: list[str], content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "blend"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(said.replace("FILE", str(path)))):
        parse_pretrain([str(path) if word == "FILE" else word for word in flags])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        parse_pretrain(["--data-args-path", str(tmp_path / "nowhere")])
