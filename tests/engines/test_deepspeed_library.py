"""DeepSpeed is asked for before anything is written; a missing, broken or other one is said in a line."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from megatron_fwpkm.config.cli import run_cli
from megatron_fwpkm.engines.deepspeed_library import import_deepspeed

CPU = torch.device("cpu")


class Finder:
    """Finds a package `deepspeed` that raises when it is imported."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "deepspeed":
            raise self.error
        return None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError(name="deepspeed"), r"^--engine deepspeed needs DeepSpeed, which is not installed: pip"),
        (ModuleNotFoundError(name="hjson"), r"DeepSpeed lacks the package hjson; install it anew: pip install"),
        (RuntimeError("no compiler\nmore"), r"does not import \(RuntimeError: no compiler\); see tools/doctor.py$"),
    ],
)
def test_a_package_that_does_not_import_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(error), *sys.meta_path])
    with pytest.raises(ValueError, match=message):
        import_deepspeed(CPU)


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("deepspeed")
    other.__version__ = "0.9.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", other)
    with pytest.raises(ValueError, match=r"made for DeepSpeed 0\.19\.8, and 0\.9\.0 is installed"):
        import_deepspeed(CPU)


def test_a_run_without_it_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pretrain

    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(ModuleNotFoundError(name="deepspeed")), *sys.meta_path])
    words = "--engine deepspeed --data-path nowhere --tokenizer-type NullTokenizer --vocab-size 9 --seq-length 64"
    assert run_cli(pretrain.main, [*words.split(), "--save", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "error: --engine deepspeed needs DeepSpeed, which is not installed: pip install" in said
    assert not (tmp_path / "run").exists()
