"""tools/evaluate_needle.py from the command line: a small export measured, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_fwpkm.config import NeedleConfig
from megatron_fwpkm.config.cli import tool_parser
from megatron_fwpkm.config.tool_options import add_tool_options, parse_tool
from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.needle.needle_options import NeedleOptions
from megatron_fwpkm.evaluation.needle.settings import NeedleSettings
from tests.evaluation.conftest import WORDS, folder, tiny_model, tokenizer  # noqa: F401
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


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory, folder):  # noqa: F811
    """A folder with the files of a byte-level BPE tokenizer, as a Hugging Face model has them."""
    import tokenizers

    target = tmp_path_factory.mktemp("tokenizer")
    trained = tokenizers.ByteLevelBPETokenizer()
    text = [(folder / "novel.txt").read_text(), *(f"The code {word} {word}." for word in WORDS)]
    trained.train_from_iterator(text, vocab_size=600, special_tokens=["<|end|>"])
    trained.save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    return target


def save_baseline(kind: str, target: Path, tokenizer_folder: Path, tiny: object) -> None:
    """A random model without memory and its tokenizer, in a folder."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=600, n_positions=256, n_embd=32, n_layer=2, n_head=2))
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(vocab_size=608, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                             num_attention_heads=2))  # fmt: skip
    else:
        config = type(tiny.config)(**tiny.config.to_dict() | {"fwpkm_layers": [], "vocab_size": 608})
        model = type(tiny)(config)
    model.save_pretrained(target)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / file, target)


def check_refused(process: subprocess.CompletedProcess[str], said: str) -> None:
    """Status 1 and a last line of error; no traceback."""
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: ")
    assert said in process.stderr


def test_an_export_is_measured(export, folder, tmp_path):  # noqa: F811
    process = run("--model", export, "--haystack", folder / "novel.txt.gz", "--lengths", 96, 200, "--depths", 2,
                  "--samples", 2, "--needles", 2, "--output", tmp_path / "out")  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[0].split() == (
        "tokens exact match [95 %] (beyond window) first token token accuracy of candidates memory-off frozen "
        "never-shown".split()
    )
    assert process.stdout.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert values["causality"]["passed"] and values["attention_reach"] == 14
    assert values["model_config"]["fwpkm_chunk_size"] == 32
    made = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "--needles 2" in made["provenance"]["command"] and set(made["tokens_per_second"]) == {"96", "200"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "curve.png", "heatmap.png", "report.html", "report_part.json", "results.csv", "results.json", "run.json",
        "samples.jsonl",
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "workers"), [("plain", 2), ("gpt2", 1), ("llama", 1)])
def test_a_model_without_memory_is_measured(  # noqa: PLR0913
    byte_tokenizer, folder, tiny_model, tmp_path, capsys, kind, workers  # noqa: F811
):
    """Under a name of its own, with the control that needs a memory left out, in the same columns."""
    save_baseline(kind, tmp_path / "model", byte_tokenizer, tiny_model)
    done = run_tool(
        capsys, "evaluate_needle", "--model", tmp_path / "model", "--haystack", folder / "novel.txt", "--lengths", 96,
        200, "--depths", 2, "--samples", 2, "--needles", 2, "--workers", workers,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'model'} has no fast-weight memory: measured as no-memory, without the control" in done.stderr
    header, *rows = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert header == (
        "condition,reads,length,depth,where,samples,exact_match,low,high,first_token,token_accuracy,"
        "candidate_accuracy,candidate_chance"
    )
    assert {row.split(",")[0] for row in rows} == {"no-memory", "never-shown"}
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert values["causality"]["passed"]
    assert values["attention_reach"] == (14 if kind == "plain" else None)
    made = json.loads((tmp_path / "out" / "run.json").read_text())
    assert made["provenance"]["memory"] == "none: the model has no fast-weight memory"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<figcaption>no memory</figcaption>" in page and "memory off" not in page
    assert "The model has no fast-weight memory" in page


def test_tokenizer_json_decides_where_another_model_has_both(byte_tokenizer, export, folder, tmp_path):  # noqa: F811
    """Exports of ours keep to tokenizer.model, which training used."""
    from megatron_fwpkm.evaluation.model_loading import load_tokenizer

    for name in ("other", "ours"):
        shutil.copytree(byte_tokenizer, tmp_path / name)
        shutil.copy(folder / "tokenizer.model", tmp_path / name)
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    shutil.copy(export / "config.json", tmp_path / "ours")
    assert load_tokenizer(tmp_path / "other").kind == "HuggingFaceTokenizer"
    assert load_tokenizer(tmp_path / "ours").kind == "SentencePieceTokenizer"


def test_more_tokens_than_learned_positions_are_refused(byte_tokenizer, folder, tiny_model, tmp_path, capsys):  # noqa: F811
    save_baseline("gpt2", tmp_path / "model", byte_tokenizer, tiny_model)
    common = ["--model", tmp_path / "model", "--haystack", folder / "novel.txt", "--output", tmp_path / "out"]
    done = run_tool(capsys, "evaluate_needle", *common, "--lengths", 256, "--needles", 2)
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert re.search(r"--lengths 256 plus about \d+ tokens of question and answer exceed the 256 learned position "
                     r"embeddings of --model .*; use shorter lengths", done.stderr)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("reset", ["file", "never"])
def test_a_killed_chain_gives_the_results_of_one_that_was_not(export, folder, tmp_path, reset):  # noqa: F811
    """The memory that the finished samples have left is made again."""
    text = [str(folder / "novel.txt"), str(folder / "novel.txt.gz")]
    command = ["--model", str(export), "--haystack", *text, "--lengths", "200", "400", "--samples", "20", "--needles",
               "2", "--memory-reset", reset, "--protocol", "official", "--reads", "2", "--output"]  # fmt: skip
    log = tmp_path / "killed" / "samples.jsonl"
    killed = [sys.executable, "tools/evaluate_needle.py", *command, str(tmp_path / "killed")]
    with subprocess.Popen(killed, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        end = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < end and (
            not log.exists() or log.read_text().count("\n") < 9
        ):
            time.sleep(0.02)
        process.kill()
    assert 8 <= log.read_text().count("\n") < 41
    for name in ("killed", "whole"):
        done = run(*command, tmp_path / name)
        assert done.returncode == 0, done.stderr
    for file in ("results.json", "results.csv", "heatmap.png", "curve.png"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_with_the_same_command(export, folder, tmp_path):  # noqa: F811
    """Not by itself: what was finished is in samples.jsonl, and the same command measures the rest."""
    command = [sys.executable, "tools/evaluate_needle.py", "--model", str(export), "--haystack",
               str(folder / "novel.txt"), "--lengths", "400", "--samples", "60", "--needles", "2", "--workers", "2",
               "--output", str(tmp_path / "out")]  # fmt: skip
    log = tmp_path / "out" / "samples.jsonl"
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        end = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < end and (
            not log.exists() or log.read_text().count("\n") < 5
        ):
            time.sleep(0.02)
        process.kill()
    kept = log.read_text().splitlines()
    assert 5 <= len(kept) < 61 and not (tmp_path / "out" / "report.html").exists()
    again = run(*command[2:])
    assert again.returncode == 0, again.stderr
    assert re.search(r"continuing: \d+ of 60 samples are already finished", again.stderr)
    assert set(kept[:-1]) < set(log.read_text().splitlines()) and log.read_text().count("\n") == 61
    assert (tmp_path / "out" / "report.html").exists()


def test_what_is_wrong_with_a_model_is_told(export, folder, tmp_path):  # noqa: F811
    from megatron_fwpkm.evaluation.model_loading import load_model

    with pytest.raises(ValueError, match="--device tpu is not available"):
        load_model(str(export), "tpu")
    with pytest.raises(ValueError, match="is not a folder; give an export, a checkpoint or a Hugging Face model"):
        load_model(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="^--model .* is not a checkpoint: .*; give an export, a checkpoint or"):
        load_model(str(tmp_path))
    shutil.copytree(export, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match="contains no tokenizer"):
        load_model(str(tmp_path / "bare"))


def test_the_tokenizer_of_a_checkpoint_is_its_copy(folder, tokenizer, tmp_path):  # noqa: F811
    from megatron_fwpkm.checkpoint.record import Layout, RunRecord, write_record
    from megatron_fwpkm.evaluation.model_loading import load_tokenizer

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
    with pytest.raises(ValueError, match="contains no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 100}, r"has 100 token embeddings, but .* has a vocabulary of \d+: it is not the tokenizer"),
    ],
)
@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_a_model_that_cannot_be_measured_is_refused_without_its_weights(export, tmp_path, kind, change, said):
    """The folders hold none."""
    from megatron_fwpkm.evaluation.model_loading import load_model

    shutil.copy(export / "tokenizer.model", tmp_path)
    if kind == "export":
        config = json.loads((export / "config.json").read_text()) | change
        (tmp_path / "config.json").write_text(json.dumps(config))
    else:
        write_checkpoint(tmp_path, change["vocab_size"])
    with pytest.raises(ValueError, match=f"--model .*{said}"):
        load_model(str(tmp_path))


def write_checkpoint(target: Path, vocab_size: int) -> None:
    """A checkpoint folder without weights."""
    from megatron_fwpkm.checkpoint.record import Layout, RunRecord, write_record

    (target / "config.yaml").write_text("seed: 1\nnum-layers: 2\nfwpkm-layer-numbers: [1]\n")
    record = RunRecord(3, 3, 96, Layout(1, 1, 1, 1, False, False), vocab_size, 512, "identity", "tokenizer.model")
    write_record(target, record)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lengths", 16], "--lengths 16 is too short for --needles 5: at least"),
        (["--lengths", 96, 10**7], "tokens, but a context needs 10000000: add text"),
        (["--lengths", 96, "--haystack", "{tmp}/no.txt"], "--haystack {tmp}/no.txt does not exist"),
        (["--lengths", 96, "--haystack", "{novel}", "{tmp}/no.txt"], "--haystack {tmp}/no.txt does not exist"),
        (["--lengths", 96, "--model", "{tmp}/no"], "--model {tmp}/no is not a folder"),
        (["--lengths", 96, "--workers", 0], "--workers 0 must be at least 1"),
        (["--lengths", 96, "--device", "tpu"], "--device tpu is not available"),
        (["--lengths", 96, "--output", "{novel}/out"], "--output {novel}/out cannot be created: {novel} is a file"),
        (["--lengths", 96, "--needle-template", "{{value}} is {{key}}."], "must have {{value}} after {{key}}"),
        (["--lengths", 96, "--needles", 10**6, "--needle-key-words", 1], "--needles 1000000 and the fact of the never"),
        (["--lengths", 96, "--needle-value-words", 0], "--needle-value-words 0 must be at least 1"),
    ],
)
def test_what_can_be_refused_is_refused_before_weights_are_loaded(
    export, folder, tmp_path, capsys, monkeypatch, flags, said  # noqa: F811
):
    from megatron_fwpkm.evaluation import model_loading

    def load(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(model_loading, "hf_model_from_checkpoint", load)
    places = {"tmp": tmp_path, "novel": folder / "novel.txt"}
    given = [flag.format(**places) if isinstance(flag, str) else flag for flag in flags]
    defaults = ["--model", export, "--haystack", folder / "novel.txt", "--output", tmp_path / "out"]
    done = run_tool(capsys, "evaluate_needle", *defaults, *given)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert said.format(**places) in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_told_without_torch(folder, tmp_path):  # noqa: F811
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')")
    command = [sys.executable, "tools/evaluate_needle.py", "--model", str(folder), "--haystack", str(tmp_path / "no"),
               "--lengths", "96", "--output", str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    check_refused(
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60),
        f"--haystack {tmp_path / 'no'} does not exist",
    )


def test_user_errors_are_one_line(export, folder, tmp_path):  # noqa: F811
    common = ("--haystack", folder / "novel.txt", "--lengths", 96, "--output", tmp_path / "out")
    check_refused(run("--model", tmp_path / "no", *common), "is not a folder")
    check_refused(run("--model", export, "--samples", 2, *common), "--samples 2 must be at least")  # before torch


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--protocol", "paper", "'paper' is not one of official, ask-after-write, streaming"),
        ("--controls", "no", "'no' is not one of memory-off, frozen, never-shown"),
        ("--lengths", "4k", "'4k' is not an integer"),
    ],
)
def test_wrong_usage_has_status_2(flag, value, said):
    process = run("--model", "m", "--haystack", "h", "--lengths", "96", "--output", "o", flag, value)
    assert process.returncode == 2
    assert said in process.stderr


@pytest.mark.parametrize(
    ("words", "controls"),
    [
        ([], ("memory-off", "frozen", "never-shown")),
        (["--controls"], ()),
        (["--controls", "never-shown", "never-shown"], ("never-shown",)),
    ],
)
def test_flags_become_settings(words, controls):
    """`--controls` alone measures none of them, and each is measured once."""
    given = "--model m --haystack h --lengths 96 8 --output o --needle-key-words 4 --model-name n --workers 3".split()
    options = parse_tool(add_tool_options(tool_parser(None), NeedleOptions), NeedleOptions, [*given, *words])
    needle = NeedleConfig(key_words=4)
    assert options.settings() == NeedleSettings("m", ("h",), (96, 8), controls=controls, needle=needle)
    assert options.run_options(("it",)) == RunOptions(Path("o"), 3, command=("it",), model_name="n")


def test_the_help_shows_an_example_that_can_be_copied(capsys):
    assert "--lengths 256 1024 4096 8192 \\\n    --depths" in run_tool(capsys, "evaluate_needle", "--help").stdout
