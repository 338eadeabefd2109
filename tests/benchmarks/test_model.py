"""The benchmarks of a layer and of a whole model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import hardware, run


@pytest.mark.parametrize("name", ["layer", "model"])
def test_cuda_graphs_need_a_gpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "resolve", lambda _: "cpu")
    assert run.main([name, "--cuda-graph", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "error: --cuda-graph needs a CUDA device, and there is none; leave it out to measure without graphs\n"
    )
