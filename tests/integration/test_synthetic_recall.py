"""Random filler, facts of three symbols: trained at 256 tokens, recalled at 2,048, and only through the memory.

The filler holds nothing to learn, so what the memory adds cannot come from anywhere else. Every step is the command a
user would type.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINING_LENGTH = 256
TEST_LENGTH = 8 * TRAINING_LENGTH
SAMPLES = 20
CONFIG = """
num-layers: 3
hidden-size: 64
ffn-hidden-size: 128
num-attention-heads: 4
seq-length: 256
layer-pattern: swa:3,swa*2
window-size: 15,0
untie-embeddings-and-output-weights: true
init-method-std: 0.06
embedding-init-method-std: 0.5
fwpkm-layer-numbers: [2]
fwpkm-num-subkeys: 128
fwpkm-key-dim: 64
fwpkm-value-dim: 64
fwpkm-chunk-size: 32
fwpkm-addressing-weight: 0.1
fwpkm-reset: step
needle-fraction: 1.0
needle-facts: 6
needle-answer-weight: 5.0
lr: 4.0e-3
lr-warmup-iters: 20
min-lr: 2.0e-4
clip-grad: 6.0
micro-batch-size: 4
train-iters: 300
eval-iters: 0
log-interval: 50
split: "100,0,0"
num-threads: 1
"""


def run_tool(*words: str | Path) -> str:
    """Run a tool of the repository to its end; a failure shows what it printed."""
    run = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, f"{words[0]} failed:\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    return run.stdout


def random_text(words: list[str], count: int) -> str:
    """Paragraphs of 200 words drawn evenly."""
    chosen = random.Random(5).choices(words, k=count)
    return "\n\n".join(" ".join(chosen[start : start + 200]) for start in range(0, count, 200)) + "\n"


def write_texts(filler: Path, vocabulary: Path) -> None:
    """Filler of three-letter words; and the words of facts, which have four and never stand in the filler.

    The first 32 of them are twice as frequent: the tokenizer makes them its first pieces, which become values.
    """
    symbols = ["".join(parts) for parts in product("bdfgklmn", "ai", "rstv", "eo")]
    filler.write_text(random_text(["".join(parts) for parts in product("cpwz", "aeiu", "dnr")], 60_000))
    vocabulary.write_text("The code.\n\n" + random_text(symbols[:32] * 2 + symbols[32:], 20_000))


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_memory_bridges_eight_times_the_training_length(tmp_path):
    filler, vocabulary, config = tmp_path / "filler.txt", tmp_path / "vocabulary.txt", tmp_path / "synthetic.yaml"
    write_texts(filler, vocabulary)
    config.write_text(CONFIG)
    run_tool(
        "tools/train_tokenizer.py", "--input", filler, vocabulary, "--vocab-size", "600", "--no-pad-token",
        "--output-prefix", tmp_path / "tok",
    )
    model = tmp_path / "tok.model"
    run_tool(
        "tools/preprocess_data.py", "--input", filler, "--txt-documents", "paragraph", "--tokenizer-model", model,
        "--tokenizer-type", "SentencePieceTokenizer", "--append-eod", "--output-prefix", tmp_path / "corpus",
    )
    run_tool(
        "pretrain.py", "--config", config, "--data-path", tmp_path / "corpus_text_document",
        "--tokenizer-model", model, "--save", tmp_path / "checkpoints",
    )
    run_tool(
        "tools/evaluate_needle.py", "--model", tmp_path / "checkpoints", "--haystack", filler,
        "--lengths", str(TEST_LENGTH), "--depths", "4", "--samples", str(SAMPLES), "--needles", "5",
        "--output", tmp_path / "needle",
    )
    results = json.loads((tmp_path / "needle" / "results.json").read_text())["results"]
    exact = {
        row["condition"]: row["exact_match"]
        for row in results
        if row["length"] == TEST_LENGTH and row["depth"] is None and row["where"] == "anywhere"
    }
    assert exact["memory-on"] >= 0.6, f"the memory bridges too little: {exact}"
    assert exact["memory-off"] <= 0.1 and exact["never-shown"] <= 0.1, f"not the memory answers: {exact}"
