"""The comparison of the GPU suite runs where Transformer Engine is, and says where it is not that it was skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.layer_numerics import SKIPPED, VARIANTS, judge, main
from megatron_fwpkm.libraries.probes import installed
from tests.spawned_ranks import run_distributed
from tests.transformer_engine import pretended
from tests.transformer_engine.pretended import needs_sources


def _rehearse(rank: int, world_size: int, folder: Path) -> int:
    pretended.install()
    return main(["--size", "tiny", "--output", str(folder)])


@pytest.mark.slow
@needs_sources
def test_it_compares_every_precision(tmp_path: Path) -> None:
    assert run_distributed(_rehearse, 1, tmp_path, timeout=280) == [0]
    (file,) = tmp_path.iterdir()
    written = json.loads(file.read_text())
    rows = {row["what"]: row for row in written["rows"]}
    assert list(rows) == list(VARIANTS) and written["failures"] == []
    assert written["layers"] == "Transformer Engine 2.11.0"
    offs = [rows[name]["off"] for name in VARIANTS]
    assert offs[0] == 0 and all(0 < off < 0.5 for off in offs[1:])
    assert rows["Transformer Engine, FP8 delayed"]["off"] > rows["Transformer Engine, bfloat16"]["off"]


@pytest.mark.skipif(installed()["transformer_engine"].ok, reason="Transformer Engine is here")
def test_without_transformer_engine_it_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "tiny", "--output", str(tmp_path)]) == SKIPPED
    assert "skipped: Transformer Engine is not installed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "loss_off", "off", "failure"),
    [
        ("Transformer Engine, bfloat16", 0.0, 0.03, "off by 3.0e-02, those of local layers by 1.0e-02"),
        ("Transformer Engine, bfloat16", 0.0, 0.019, None),
        ("Transformer Engine, bfloat16", 0.0, float("nan"), "not finite"),
        ("Transformer Engine, FP8 delayed", 0.06, 0.3, "the loss is off by 6.0%"),
        ("Transformer Engine, FP8 delayed", 0.04, 0.3, None),
    ],
)
def test_what_is_too_far_off(what: str, loss_off: float, off: float, failure: str | None) -> None:
    rows: list[dict[str, Any]] = [
        {"what": "local, bfloat16", "loss off": 0.0, "off": 0.01},
        {"what": what, "loss off": loss_off, "off": off},
    ]
    found = judge(rows)
    assert found == [] if failure is None else len(found) == 1 and failure in found[0]
