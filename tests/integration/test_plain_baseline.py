"""A transformer without memory, as checkpoint and as export, is measured like a model with one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from tests.checkpoint.contents import write_checkpoint
from tests.conversion.test_export_folder import IDENTITY, novel, train
from tests.layers.megatron import initialize
from tests.tools.in_process import run_tool


def test_checkpoint_and_export_of_the_plain_baseline_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both give the same numbers, under the name no-memory."""
    (tmp_path / "t.model").write_bytes(train(novel(), vocab_size=1500, **IDENTITY))
    (tmp_path / "text.txt").write_text("\n\n".join(novel()[:400]))
    initialize()
    write_checkpoint(tmp_path / "run", 1500, 1536, tmp_path / "t.model", ["--fwpkm-layer-numbers", "none"])
    assert not read_checkpoint(tmp_path / "run").fast
    exported = run_tool(
        capsys, "convert_checkpoint", "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf"
    )
    assert exported.returncode == 0, exported.stderr
    tables = []
    for place in ("run", "hf"):
        output = tmp_path / f"needle_{place}"
        done = run_tool(
            capsys, "evaluate_needle", "--model", tmp_path / place, "--haystack", tmp_path / "text.txt", "--lengths",
            300, "--depths", 2, "--samples", 2, "--needles", 1, "--output", output,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"--model {tmp_path / place} has no fast-weight memory: measured as no-memory" in done.stderr
        tables.append(list(csv.DictReader((output / "results.csv").open())))
    assert tables[0] == tables[1] and {row["condition"] for row in tables[0]} == {"no-memory", "never-shown"}
