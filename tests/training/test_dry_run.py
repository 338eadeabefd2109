"""--dry-run: fast, without torch, and right in what it prints."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from megatron_fwpkm.config.derived import table_bytes
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.parameter_counts import num_parameters
from megatron_fwpkm.training.dry_run import dry_run, vocabulary_size
from megatron_fwpkm.training.memory_estimate import format_bytes

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *"--dry-run --num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 256 --vocab-size 1000".split(),
    *"--fwpkm-layer-numbers 2 4 --fwpkm-num-subkeys 64 --fwpkm-key-dim 32 --fwpkm-value-dim 32".split(),
    *"--fwpkm-chunk-size 64".split(),
]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def shown(*words: str) -> str:
    console = Console(file=io.StringIO(), width=140, highlight=False)
    assert dry_run(parse_pretrain([*SMALL, *words]), console) == 0
    return console.file.getvalue()


def row(text: str, start: str) -> list[str]:
    """Words of the only line that begins with `start`, behind it."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.strip().removeprefix(start).split()


def test_options_with_their_origins(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lr: 2e-4\nsplit: '[x]'\n")
    with pytest.raises(ValueError, match="--split .x. is malformed"):
        shown("--config", str(path))
    path.write_text("lr: 2e-4\n")
    text = shown("--config", str(path))
    assert row(text, "--lr ")[0] == "0.0002" and row(text, "--lr ")[1].endswith("run.yaml:1")
    assert row(text, "--fwpkm-layer-numbers") == ["2", "4", "command", "line"]
    assert "--min-lr" not in text and "more options have their default; --dry-run-all shows all" in text
    everything = shown("--config", str(path), "--dry-run-all")
    assert row(everything, "--min-lr") == ["0.0", "default"]
    assert row(everything, "--fwpkm-score") == ["idw", "default"]
    assert "more options have their default" not in everything


def test_layer_plan():
    text = shown("--layer-pattern", "swa:23*3,fa", "--fwpkm-layer-numbers", "4")
    assert row(text, "1-3") == "0 - swa: itself and 23 tokens before".split()
    assert row(text, "4 ") == "0 FwPKM 4,096 slots x 32, 1 head top-8, chunk 64 fa: all tokens before".split()
    two = shown("--pipeline-model-parallel-size", "2", "--fwpkm-layer-numbers", "none")
    assert row(two, "1-2") == "0 - all tokens before".split() and row(two, "3-4") == "1 - all tokens before".split()


def test_parameters_and_tables():
    text, config = shown(), parse_pretrain(SMALL).config
    assert row(text, "slow weights")[0] == f"{num_parameters(config, 1000):,}"
    assert row(text, "fast weights (2 memories)")[0] == f"{2 * table_bytes(config) // 4:,}"
    halves = shown("--tensor-model-parallel-size", "2")
    whole, rank = (int(number.replace(",", "")) for number in row(halves, "mlp"))
    norms = 4 * 64
    assert rank == (whole - norms) // 2 + norms
    assert "fast weights" not in shown("--fwpkm-layer-numbers", "none")


def test_flops_of_a_token_and_of_a_step():
    line = row(shown("--global-batch-size", "8", "--micro-batch-size", "8", "--no-fwpkm-gate"), "FLOPs:")
    layer = 4 * 64 * 64 + 3 * 64 * 192 + 2 * 64 * 128.5  # linears of attention, MLP, attention to half the sequence
    memory = 3 * 64 * 32 + 64 * 32 + 3 * 8 * 32  # linears, scores; read, write, movement of the sub-keys
    one = 6 * (4 * layer + 2 * memory + 1024 * 64)
    assert line[:2] == [f"{one / 1e6:.3g}", "MFLOP"]
    assert f"{8 * 256 * one / 1e9:.3g} GFLOP per step: full attention" in " ".join(line)


def test_documents_that_cut_chunks_are_named():
    assert "Undo log" not in shown() + shown("--fwpkm-reset", "document", "--fwpkm-layer-numbers", "none")
    line = "more per memory for every document start inside a sequence, which splits a chunk"
    assert f"Undo log: up to 8.0 KiB {line}\n" in shown("--fwpkm-reset", "document")  # 2 x 64 sub-keys of 16 numbers
    assert f"Undo log: up to 0 B {line}\n" in shown("--fwpkm-reset", "document", "--fwpkm-inner-lr", "0")


def test_whom_a_memory_belongs_to_is_said():
    owned = shown("--fwpkm-reset", "step", "--fwpkm-owner", "sequence")
    line = "Every sequence starts from the initial memory, and its writes end with it (--fwpkm-owner sequence)\n"
    assert "has its own fast weights (--fwpkm-reset step)\n" + line in owned
    assert "Every sequence starts" not in shown("--fwpkm-reset", "step") and "Undo log" not in owned


def test_layout_and_batch(monkeypatch):
    text = shown("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2")
    assert "Layout: 4 processes = TP 2 x PP 2 x DP 1  (the minimum;" in text
    assert "stage 0" in text and "stage 1" in text
    monkeypatch.setenv("WORLD_SIZE", "8")
    text = shown("--global-batch-size", "32", "--micro-batch-size", "2", "--train-iters", "10")
    assert "Layout: 8 processes = TP 1 x PP 1 x DP 8\n" in text
    assert "32 sequences x 256 tokens = 8,192 tokens in 2 micro-batches per replica; 10 steps = 81,920 tokens" in text
    with pytest.raises(ValueError, match="--global-batch-size 12 is not divisible by --micro-batch-size 1 times 8"):
        shown("--global-batch-size", "12")


def test_only_rank_0_prints(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert shown() == ""


def test_what_a_real_run_misses(tmp_path):
    text = shown()
    assert "Missing for training: --data-path; create a dataset with tools/preprocess_data.py" in text
    assert "Missing for training: --tokenizer-model\n" in text
    (tmp_path / "b.idx").touch()
    text = shown("--data-path", "0.5", f"{tmp_path}/a", "0.5", f"{tmp_path}/b", "--tokenizer-model", "absent.model")
    assert f"{tmp_path}/a.idx (--data-path)" in text and f"{tmp_path}/b.idx" not in text
    assert "Missing for training: --tokenizer-model absent.model" in text


def test_vocabulary():
    assert vocabulary_size(parse_pretrain(SMALL).config) == 1000
    null = ["--tokenizer-type", "NullTokenizer"]
    assert vocabulary_size(parse_pretrain([*SMALL, *null]).config) == 1001  # and the end of a document
    with pytest.raises(ValueError, match="--dry-run needs the size of the vocabulary: give --tokenizer-model or"):
        vocabulary_size(parse_pretrain(["--dry-run"]).config)
    with pytest.raises(ValueError, match="--tokenizer-model absent.model does not exist"):
        vocabulary_size(parse_pretrain(["--dry-run", "--tokenizer-model", "absent.model"]).config)


def test_a_configuration_that_could_not_run_is_refused():
    with pytest.raises(ValueError, match="--fwpkm-layer-numbers 9 must be between 1 and 4"):
        shown("--fwpkm-layer-numbers", "9")


def test_it_needs_no_torch_and_no_time():
    script = (
        "import sys; from megatron_fwpkm.config.loading import parse_pretrain\n"
        "from megatron_fwpkm.training.dry_run import dry_run\n"
        "assert dry_run(parse_pretrain(sys.argv[1:])) == 0\n"
        "assert not {'torch', 'megatron.core', 'transformers'} & set(sys.modules)"
    )
    arguments = ["--config", "examples/paper/base_112m.yaml", "--dry-run"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert row(run.stdout, "slow weights")[0] == "110,727,171"
    assert max(map(len, run.stdout.splitlines())) <= 130


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**52, "4,096.0 TiB")]
)
def test_bytes(count, text):
    assert format_bytes(count) == text
