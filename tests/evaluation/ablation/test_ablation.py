"""An ablation of very small models: what is trained, resumed, compared and refused."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from megatron_fwpkm.evaluation.ablation import run as ablation_run
from megatron_fwpkm.evaluation.ablation import trial_run
from megatron_fwpkm.evaluation.ablation.ablation_settings import AblationOptions
from megatron_fwpkm.evaluation.ablation.ablation_table import tabulate_trials
from megatron_fwpkm.evaluation.ablation.grid import Grid
from megatron_fwpkm.evaluation.ablation.run import run_ablation
from megatron_fwpkm.evaluation.ablation.trial_record import TrialRecord
from tests.test_pretrain import flags, start
from tests.tools.in_process import run_tool

SIZES = ("num_layers", "hidden_size", "num_attention_heads", "fwpkm_num_subkeys", "fwpkm_key_dim", "fwpkm_value_dim",
         "fwpkm_topk", "fwpkm_chunk_size", "micro_batch_size", "global_batch_size", "lr")  # fmt: skip


@pytest.fixture(scope="module")
def prepared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the folder's text with its tokenizer, held-out text, and a grid of two memories."""
    root = tmp_path_factory.mktemp("ablation")
    text = (folder / "novel.txt").read_text()
    (root / "training.txt").write_text(text[: len(text) // 2])
    (root / "held_out.txt").write_text(text[len(text) // 2 :])
    silent: Any = SimpleNamespace(readouterr=lambda: ("", ""))
    done = run_tool(
        silent, "preprocess_data", "--input", root / "training.txt", "--output-prefix", root / "novel",
        "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", folder / "tokenizer.model", "--append-eod",
        "--workers", 1,
    )  # fmt: skip
    assert done.returncode == 0
    words = flags("none", seq_length=64, train_iters=4, save_interval=2, eval_iters=0, log_interval=1)
    names = dict(zip(words[::2], words[1::2], strict=False))
    base = {name: names[f"--{name.replace('_', '-')}"] for name in SIZES}
    base = {name.replace("_", "-"): yaml.safe_load(value) for name, value in base.items()}
    base |= {"seq-length": 64, "train-iters": 4, "save-interval": 2, "eval-iters": 0, "log-interval": 1}
    base |= {"tokenizer-type": "SentencePieceTokenizer", "make-vocab-size-divisible-by": 16, "split": "1,0,0"}
    (root / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    axes = {"memory": {"none": {}, "fwpkm": {"fwpkm-layer-numbers": [2]}}}
    grid = {"base": "base.yaml", "seeds": [1, 2], "reference": "none", "axes": axes}
    (root / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    return root


@pytest.fixture
def options(prepared: Path, folder: Path, tmp_path: Path) -> AblationOptions:
    return AblationOptions(
        str(prepared / "grid.yaml"), str(prepared / "novel_text_document"), str(folder / "tokenizer.model"),
        (str(prepared / "held_out.txt"),), str(tmp_path / "out"), length=1100,
    )  # fmt: skip


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training happens in this process, which spares its start; the folders that were trained."""
    seen: list[str] = []

    def train(words: list[str], where: Path) -> float:
        seen.append(where.name)
        assert start([*words, "--log-dir", str(where)]) == 0
        return 10.0 + 2.0 * int(words[words.index("--exit-interval") + 1]) if "--exit-interval" in words else 5.0

    monkeypatch.setattr(trial_run, "_train", train)
    return seen


@pytest.mark.slow
def test_models_are_trained_compared_and_not_trained_again(
    options: AblationOptions, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = options.run_options(("python", "tool.py"))
    results = run_ablation(options, run)
    assert trained == ["none_seed1", "fwpkm_seed1", "none_seed2", "fwpkm_seed2"]
    none, fwpkm = results.rows
    assert (none.choices, none.seeds, none.iterations, none.cpu_seconds) == (("none",), 2, 4.0, 5.0)
    assert none.gap is None and none.memory_gap is None and none.gate is None
    assert fwpkm.gap is not None and fwpkm.memory_gap is not None and 0 < (fwpkm.gate or 0) < 1
    by_name = {record.name: record for record in results.records}
    gaps = [by_name[f"fwpkm_seed{s}"].losses["all"] - by_name[f"none_seed{s}"].losses["all"] for s in (1, 2)]
    assert fwpkm.gap.mean == pytest.approx(sum(gaps) / 2, abs=1e-12)
    assert fwpkm.parameters > none.parameters and by_name["none_seed1"].losses != by_name["none_seed2"].losses
    files = {path.name for path in (tmp_path / "out").iterdir()}
    report = {"ablation.png", "report.html", "report_part.json"}
    assert files == {"models", "samples.jsonl", "results.json", "results.csv", *report}
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [row["memory"] for row in rows] == ["none", "fwpkm"] and float(rows[1]["gap"]) == round(fwpkm.gap.mean, 6)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "4 models, 2 seeds, at equal iterations." in page and "--fwpkm-layer-numbers 2" in page

    # A killed one: the last record is lost, and only its model is measured again; its training has ended.
    log = tmp_path / "out" / "samples.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    again = run_ablation(options, run)
    assert trained[4:] == ["fwpkm_seed2"]
    assert [record.losses for record in again.records] == [record.losses for record in results.records]
    with pytest.raises(ValueError, match="samples of a different evaluation"):
        run_ablation(replace(options, length=2048), run)

    # A budget that is used up after a seed.
    clock = iter(range(0, 10**9, 3000))
    monkeypatch.setattr(ablation_run.time, "monotonic", lambda: float(next(clock)))
    short = run_ablation(replace(options, max_hours=1.0, overwrite=True), replace(run, overwrite=True))
    assert short.left_out == 2 and {record.seed for record in short.records} == {1}
    assert math.isnan(short.rows[1].gap.low)  # type: ignore[union-attr]
    assert "The budget left out 2 models." in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_equal_time_gives_every_model_its_own_number_of_iterations(
    options: AblationOptions, prepared: Path, trained: list[str], tmp_path: Path
) -> None:
    content = yaml.safe_load((prepared / "grid.yaml").read_text()) | {"seeds": [1], "cpu-seconds": 100}
    content["axes"]["memory"].pop("fwpkm")
    content["base"] = str(prepared / "base.yaml")
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    results = run_ablation(replace(options, grid=str(tmp_path / "grid.yaml"), needle_lengths=(128,), needle_samples=5),
                           options.run_options(()))  # fmt: skip
    assert trained == ["calibration", "calibration", "none_seed1"]
    (row,) = results.rows
    assert row.iterations == 50  # 2 s an iteration, by the calibration
    assert row.recall.keys() == {"128"}


def test_what_is_refused_before_anything_is_trained(
    options: AblationOptions, prepared: Path, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((prepared / "grid.yaml").read_text()) | {"base": str(prepared / "base.yaml")}

    def said(flags_of_fwpkm: dict[str, Any]) -> str:
        content["axes"]["memory"]["fwpkm"] = flags_of_fwpkm
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        with pytest.raises(ValueError) as caught:
            run_ablation(replace(options, grid=str(tmp_path / "grid.yaml")), options.run_options(()))
        return str(caught.value)

    assert "fwpkm_seed1 cannot be trained: --fwpkm-layer-numbers 7 must be" in said({"fwpkm-layer-numbers": [7]})
    assert "refuses the flags of fwpkm_seed1, see above" in said({"fwpkm-layers": [2]})
    assert "--fwpkm-layers" in capsys.readouterr().err
    for field, match in (("data_path", "nowhere"), ("tokenizer_model", "--tokenizer-model nowhere does not exist")):
        with pytest.raises(ValueError, match=match):
            run_ablation(replace(options, **{field: "nowhere"}), options.run_options(()))
    assert trained == [] and not (tmp_path / "out").exists()
    for changes, match in (
        ({"length": 12}, "--length 12 must be at least 1024"), ({"workers": 0}, "--workers 0"),
        ({"needle_samples": 1}, "--needle-samples 1"), ({"max_hours": 0.0}, "--max-hours 0.0 must be above 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            replace(options, **changes)


def test_gaps_are_paired_within_the_other_axes() -> None:
    def record(choices: tuple[str, str], seed: int, near: float, far: float) -> TrialRecord:
        whole = {"all": (near + far) / 2, "0": near, "512": far}
        return TrialRecord("_".join(choices), choices, seed, 10, 100, 1.0, whole, {}, {}, {})

    records = [
        record(("none", "short"), 1, 4.0, 3.0), record(("none", "short"), 2, 4.2, 3.4),
        record(("some", "short"), 1, 4.0, 2.9), record(("some", "short"), 2, 4.2, 3.2),
        record(("none", "long"), 1, 3.0, 2.0), record(("some", "long"), 1, 3.0, 2.5),
    ]  # fmt: skip
    axes: dict[str, Any] = {"memory": {"none": {}, "some": {}}, "window": {"short": {}, "long": {}}}
    grid = Grid(Path(), (1, 2), axes, "none")
    rows = {row.choices: row for row in tabulate_trials(grid, records, {"0": 1, "512": 1})}
    short = rows["some", "short"]
    assert short.far_gap is not None and short.far_gap.mean == pytest.approx(-0.15)
    assert short.far_gap.high - short.far_gap.mean == pytest.approx(12.7062 * 0.05, abs=1e-4)
    long = rows["some", "long"].far_gap
    assert long is not None and long.mean == pytest.approx(0.5) and math.isnan(long.low)


@pytest.mark.slow
def test_the_tool_trains_in_processes(
    options: AblationOptions, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_tool(
        capsys, "run_ablation", "--grid", prepared / "grid.yaml", "--data-path", options.data_path, "--workers", 2,
        "--tokenizer-model", options.tokenizer_model, "--text", *options.text, "--length", 1100, "--output",
        tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    trials = json.loads((tmp_path / "out" / "results.json").read_text())["trials"]
    assert len(trials) == 4 and all(trial["cpu_seconds"] > 1 for trial in trials)
    (prepared / "novel_text_document.bin").rename(prepared / "away.bin")
    failed = run_tool(
        capsys, "run_ablation", "--grid", prepared / "grid.yaml", "--data-path", options.data_path,
        "--tokenizer-model", options.tokenizer_model, "--text", *options.text, "--output", tmp_path / "other",
    )  # fmt: skip
    (prepared / "away.bin").rename(prepared / "novel_text_document.bin")
    assert failed.returncode == 1 and "the training of none_seed1 ended with status 1 (error:" in failed.stderr
