"""A report whose folder cannot be written: one line and status 2, before anything is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import layer_numerics, repeated_launches, run
from benchmarks.run import BENCHMARKS


def measured(*_: object) -> None:
    pytest.fail("it measures before it knows where to write")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], run=measured))
    file = tmp_path / "file"
    file.touch()
    inputs = ["--text", str(file), "--tokenizer-model", str(file)] if name == "preprocess" else []
    assert run.main([name, *inputs, "--output", str(file / "folder")]) == 2
    found = capsys.readouterr().err
    assert found == f"error: --output {file / 'folder'} cannot be written: Not a directory; choose another folder\n"


@pytest.mark.parametrize("main", [layer_numerics.main, repeated_launches.main], ids=lambda main: main.__module__)
def test_a_check_of_the_gpu_suite(
    main: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layer_numerics, "compare", measured)
    monkeypatch.setattr("megatron_fwpkm.libraries.choices.choose_layers", lambda *_: type("Choice", (), {"name": "te"}))
    monkeypatch.setattr(repeated_launches, "repeated", measured)
    file = tmp_path / "file"
    file.touch()
    assert main(["--output", str(file)]) == 2
    assert capsys.readouterr().err.endswith("cannot be written: File exists; choose another folder\n")
