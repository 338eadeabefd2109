"""What --dry-run says that training needs, against the peak of real runs on the CPU.

Each configuration is trained by pretrain.py's own function in a process of its own (with tensor parallelism, in
several), which tells its resident memory after the imports and its highest at the end. Run as a module it is one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hardware import GIB, peak_bytes
from benchmarks.report import ROOT, Goal, Report, add_output_argument, provenance

_ITERATIONS = 4
_COMMON = (
    f"--tokenizer-type NullTokenizer --train-iters {_ITERATIONS} --eval-iters 0 --split 1,0,0 --log-interval 1 "
    "--num-threads 1"
)
TOLERANCE = 0.15


@dataclass(frozen=True)
class Case:
    """A configuration by its name."""

    what: str
    flags: str
    vocab_size: int
    ranks: int = 1


CASES = {
    "process": Case(
        "next to no model: the process itself",
        "--num-layers 1 --hidden-size 32 --num-attention-heads 2 --seq-length 64 --fwpkm-layer-numbers 1 "
        "--fwpkm-num-subkeys 16 --fwpkm-key-dim 16 --fwpkm-value-dim 16 --fwpkm-chunk-size 64",
        63,
    ),
    "quickstart": Case(
        "the quickstart's model",
        "--config examples/quickstart/quickstart.yaml --save-interval none --lr-warmup-iters 0 --needle-fraction 0",
        4095,
    ),
    "logits": Case(
        "hidden 512, 4 layers, 32k pieces, 1,024 tokens: logits and embedding dominate",
        "--num-layers 4 --hidden-size 512 --num-attention-heads 8 --seq-length 1024 --micro-batch-size 1 "
        "--fwpkm-layer-numbers 2 --fwpkm-num-subkeys 128 --fwpkm-key-dim 128 --fwpkm-value-dim 128",
        32767,
    ),
    "tables": Case(
        "two memories of 512^2 x 256, full recomputation",
        "--num-layers 6 --hidden-size 256 --num-attention-heads 4 --seq-length 1024 --micro-batch-size 2 "
        "--fwpkm-layer-numbers 2 5 --fwpkm-num-subkeys 512 --fwpkm-key-dim 256 --fwpkm-value-dim 256 "
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        4095,
    ),
    "tensor_parallel": Case(
        "the case logits on two tensor-parallel ranks",
        "--num-layers 4 --hidden-size 512 --num-attention-heads 8 --seq-length 1024 --micro-batch-size 1 "
        "--fwpkm-layer-numbers 2 --fwpkm-num-subkeys 128 --fwpkm-key-dim 128 --fwpkm-value-dim 128 "
        "--tensor-model-parallel-size 2",
        32767,
        ranks=2,
    ),
}  # fmt: skip


def flags(case: Case, prefix: str, folder: str) -> list[str]:
    """The command line of a run on the dataset `prefix`."""
    data = ["--data-path", prefix, "--vocab-size", str(case.vocab_size), "--log-dir", folder]
    return [*case.flags.split(), *_COMMON.split(), *data]


def estimate(case: Case) -> dict[str, int]:
    """Bytes of the estimate by part, of the stage that needs the most."""
    from megatron_fwpkm.config.loading import parse_pretrain
    from megatron_fwpkm.training.dry_run import vocabulary_size
    from megatron_fwpkm.training.memory_estimate import PROCESS_BYTES, estimate_memory

    config = parse_pretrain(flags(case, "none", "none")).config
    found = estimate_memory(config, vocabulary_size(config), case.ranks)
    return {**vars(found), "process": PROCESS_BYTES, "resident": found.resident}


def measure(name: str) -> dict[str, int]:
    """Train a configuration in processes of their own: resident bytes after the imports, and the highest of a rank.

    Raises:
        RuntimeError: training failed.
    """
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        _write_dataset(Path(folder) / "tokens", case.vocab_size)
        module = ["-m", "benchmarks.memory_estimate", name, folder]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.ranks)]
        command = [sys.executable, *(launcher if case.ranks > 1 else []), *module]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{name} failed with exit code {result.returncode}:\n{result.stderr}")
        ranks = [json.loads(path.read_text()) for path in Path(folder).glob("rank*.json")]
    assert len(ranks) == case.ranks
    return {part: max(rank[part] for rank in ranks) for part in ranks[0]}


def _write_dataset(prefix: Path, vocab_size: int) -> None:
    """Random tokens, enough for all iterations."""
    import numpy as np

    from megatron_fwpkm.config import DataConfig
    from megatron_fwpkm.data.indexed.indexed_format import IndexedWriter, token_dtype
    from megatron_fwpkm.data.tokenizers import build_tokenizer

    dtype = token_dtype(vocab_size + 1)
    generator = np.random.default_rng(0)
    with IndexedWriter(prefix, dtype) as writer:
        for _ in range(20):
            tokens = generator.integers(0, vocab_size, 4096).astype(dtype)
            writer.append(tokens.tobytes(), array("i", [len(tokens)]))
        tokenizer = build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=vocab_size))
        made = {"type": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "identity": tokenizer.identity}
        writer.publish({"tokenizer": made})


def train(name: str, folder: str) -> None:
    """One process of a run: train, and write what it measured."""
    import pretrain
    from megatron_fwpkm.config.cli import run_cli
    from megatron_fwpkm.training import pretraining  # noqa: F401 (what a run imports)

    begin = peak_bytes("cpu")
    code = run_cli(pretrain.main, flags(CASES[name], f"{folder}/tokens", f"{folder}/log"))
    found = {"process": begin, "peak": peak_bytes("cpu")}
    (Path(folder) / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
    sys.exit(code)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="configurations (default: all)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, of which the highest counts (default: 1)")
    add_output_argument(parser)


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Measure as the parsed arguments say."""
    rows, goals, data = list[list[str]](), list[Goal](), dict[str, Any]()
    for name in arguments.cases:
        print(f"{name} ...", file=sys.stderr, flush=True)
        runs = [measure(name) for _ in range(arguments.repeats)]
        measured = {part: max(one[part] for one in runs) for part in runs[0]}
        estimated = estimate(CASES[name])
        ratio = estimated["resident"] / measured["peak"]
        data[name] = {"estimated": estimated, "measured": runs, "flags": CASES[name].flags}
        shown = [estimated["resident"], measured["peak"], measured["process"]]
        rows.append([name, CASES[name].what, *(f"{value / GIB:.2f}" for value in shown), f"{ratio:.2f}"])
        goals.append(Goal(name, f"{ratio:.2f}", "0.85 to 1.15", abs(ratio - 1) <= TOLERANCE))
    notes = [
        f"{_ITERATIONS} steps of `pretrain.py` on the CPU, one process a rank. Measured is the highest resident memory "
        "of a process (VmHWM), interpreter and libraries included, which alone have the bytes of the column `after "
        "imports`; estimated is what `--dry-run` prints."
    ]
    header = ["case", "what", "estimated GiB", "measured GiB", "after imports GiB", "estimated / measured"]
    title = "The memory estimate against training"
    return Report("memory_estimate", title, notes, header, rows, data, provenance(command), goals=goals)


if __name__ == "__main__":
    train(*sys.argv[1:])
