"""tools/evaluate_needle.py from the command line: a small export measured, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.conftest import folder, tiny_model, tokenizer  # noqa: F401
from tests.tools.in_process import run_tool

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The tool with these arguments."""
    command = [sys.executable, "tools/evaluate_needle.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def export(tmp_path_factory, folder, tiny_model):  # noqa: F811
    """A folder like an export: weights, configuration and tokenizer."""
    target = tmp_path_factory.mktemp("export")
    tiny_model.save_pretrained(target)
    shutil.copy(folder / "tokenizer.model", target)
    return target


def check_refused(process: subprocess.CompletedProcess[str], said: str) -> None:
    """Status 1 and a last line of error; no traceback."""
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: ")
    assert said in process.stderr


def test_an_export_is_measured(export, folder, tmp_path):  # noqa: F811
    process = run("--model", export, "--haystack", folder / "novel.txt.gz", "--lengths", 96, 200, "--depths", 2,
                  "--samples", 2, "--needles", 2, "--check-causality", "--output", tmp_path / "out")  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[0].split() == (
        "tokens exact match [95 %] (beyond window) first token token memory-off never-shown".split()
    )
    assert process.stdout.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert values["causality"]["passed"] and values["attention_reach"] == 14
    assert values["model_config"]["fwpkm_chunk_size"] == 32
    assert "--check-causality" in values["provenance"]["command"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "heatmap.png", "report.html", "results.csv", "results.json", "samples.jsonl"
    }  # fmt: skip


def test_what_is_wrong_with_a_model_is_told(export, folder, tmp_path):  # noqa: F811
    from megatron_fwpkm.evaluation.loading import load_model

    with pytest.raises(ValueError, match="--device tpu cannot be used here"):
        load_model(str(export), "tpu")
    with pytest.raises(ValueError, match="is not a folder; give an export or a checkpoint"):
        load_model(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="is not a checkpoint|no checkpoint"):
        load_model(str(tmp_path))
    shutil.copytree(export, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_model(str(tmp_path / "bare"))


def test_the_tokenizer_of_a_checkpoint_is_its_copy(folder, tokenizer, tmp_path):  # noqa: F811
    from megatron_fwpkm.checkpoint.record import Layout, RunRecord, write_record
    from megatron_fwpkm.evaluation.loading import load_tokenizer

    def publish(tokenizer_file: str | None) -> None:
        layout = Layout(1, 1, 1, 1, False, False)
        write_record(checkpoint, RunRecord(3, 3, 96, layout, 420, 512, tokenizer.identity, tokenizer_file))
        (tmp_path / "latest").write_text("iter_0000003\n")

    checkpoint = tmp_path / "iter_0000003"
    checkpoint.mkdir()
    (checkpoint / "config.yaml").write_text("seed: 1\n")
    shutil.copy(folder / "tokenizer.model", checkpoint / "tokenizer.model")
    publish("tokenizer.model")
    for place in (tmp_path, checkpoint):
        assert load_tokenizer(place).identity == tokenizer.identity
    (checkpoint / "config.yaml").write_text("tokenizer-type: ByteLevelTokenizer\n")
    publish(None)
    assert load_tokenizer(tmp_path).kind == "ByteLevelTokenizer"
    (checkpoint / "config.yaml").write_text("seed: 1\n")
    publish(None)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_model_without_memory_is_refused(tokenizer, tiny_model):  # noqa: F811
    from megatron_fwpkm.evaluation.loading import check_fits
    from megatron_fwpkm.hf.modeling_fwpkm import FwPKMForCausalLM

    config = type(tiny_model.config).from_dict(tiny_model.config.to_dict() | {"fwpkm_layers": []})
    with pytest.raises(ValueError, match="--model m has no fast-weight memory"):
        check_fits(FwPKMForCausalLM(config), tokenizer, "m")


def test_a_foreign_tokenizer_is_refused(tokenizer, tiny_model):  # noqa: F811
    from megatron_fwpkm.evaluation.loading import check_fits
    from megatron_fwpkm.hf.modeling_fwpkm import FwPKMForCausalLM

    config = type(tiny_model.config).from_dict(tiny_model.config.to_dict() | {"vocab_size": 100})
    with pytest.raises(ValueError, match=r"has 100 token embeddings, but .* pieces: it is not the tokenizer"):
        check_fits(FwPKMForCausalLM(config), tokenizer, "m")


def test_user_errors_are_one_line(export, folder, tmp_path):  # noqa: F811
    common = ("--haystack", folder / "novel.txt", "--lengths", 96, "--output", tmp_path / "out")
    check_refused(run("--model", tmp_path / "no", *common), "is not a folder")
    check_refused(run("--model", export, "--samples", 2, *common), "--samples 2 must be at least")  # before torch


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [("--protocol", "official", "invalid choice"), ("--controls", "no", "invalid choice"), ("--lengths", "4k", "int")],
)
def test_wrong_usage_has_status_2(flag, value, said):
    process = run("--model", "m", "--haystack", "h", "--lengths", "96", "--output", "o", flag, value)
    assert process.returncode == 2
    assert said in process.stderr


def test_the_help_shows_an_example_that_can_be_copied(capsys):
    assert "--lengths 256 1024 4096 8192 \\\n    --depths" in run_tool(capsys, "evaluate_needle", "--help").stdout
