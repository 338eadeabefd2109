"""Saving a run with large memories: seconds and bytes, in the foreground and in the background, and loading it again.

Each side runs in a process of its own. Run as a module it is one such side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import ROOT, Report, provenance

if TYPE_CHECKING:
    from torch import Tensor

SIDES = ("foreground", "background")
GB = 1e9
_MODEL = (
    "--num-layers 4 --hidden-size 256 --num-attention-heads 4 --seq-length 512 --micro-batch-size 1 --eval-iters 0 "
    "--train-iters 1000000 --tokenizer-type NullTokenizer --vocab-size 1000 --keep-last 1"
)
"""A small model, so that what is saved is its memories."""


def flags(folder: str, side: str, memories: int, num_subkeys: int) -> list[str]:
    """The command line of a run with so many memories on its first layers."""
    layers = [str(number) for number in range(1, memories + 1)]
    chosen = [*_MODEL.split(), "--fwpkm-layer-numbers", *layers, "--fwpkm-num-subkeys", str(num_subkeys)]
    return [*chosen, "--save", folder, *(["--async-save"] if side == "background" else [])]


def measure_side(side: str, folder: str, memories: int, num_subkeys: int, repeats: int) -> dict[str, Any]:
    """Train, save `repeats` times while training goes on, and load the last checkpoint.

    Returns seconds: `held`, of each save, in which no step was made; `published`, from its begin until it counts;
    `load`; and of single steps `alone` and `meanwhile`. Bytes of the checkpoint by part.
    """
    from megatron_fwpkm.config.derived import embedding_rows
    from megatron_fwpkm.config.loading import parse_pretrain
    from megatron_fwpkm.data.tokenizers import build_tokenizer
    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run
    from megatron_fwpkm.training.checkpointing import RunCheckpoints, TrainingProgress, save_folder

    resolved = parse_pretrain(flags(folder, side, memories, num_subkeys))
    config = resolved.config
    with megatron_run(config.parallel, config.training) as world, save_folder(config) as manager:
        tokenizer = build_tokenizer(config.data)
        engine = MegatronEngine(config, embedding_rows(config, tokenizer.vocab_size), world.device)
        checkpoints = RunCheckpoints(resolved, world, manager, engine, tokenizer)
        batches, progress = _batches(config.model.seq_length, tokenizer.vocab_size), TrainingProgress()
        found: dict[str, Any] = {name: [] for name in ("held", "published", "alone", "meanwhile")}

        def step() -> float:
            """Seconds of one step."""
            start = time.perf_counter()
            engine.train_step(batches)
            progress.iteration += 1
            return time.perf_counter() - start

        step()  # the first one makes the optimizer's states
        for _ in range(repeats):
            found["alone"] += [step() for _ in range(3)]
            start = time.perf_counter()
            checkpoints.save(progress)
            found["held"].append(time.perf_counter() - start)
            while checkpoints.saved_iteration != checkpoints.begun_iteration:
                found["meanwhile"].append(step())
                begin = time.perf_counter()
                checkpoints.finish(wait=False)
                found["held"][-1] += time.perf_counter() - begin
            found["published"].append(time.perf_counter() - start)
        newest = Path(checkpoints.newest() or "")
        start = time.perf_counter()
        engine.load(newest, weights_only=False)
        found["load"] = time.perf_counter() - start
    sizes = {path.name: _bytes_below(path) for path in newest.iterdir() if path.is_dir()}
    return found | {"bytes": sizes | {"all": _bytes_below(newest)}}


def _batches(length: int, vocabulary: int) -> Iterator[dict[str, Tensor]]:
    """Random micro-batches of one sequence."""
    import torch

    generator = torch.Generator().manual_seed(0)
    while True:
        tokens = torch.randint(0, vocabulary, (1, length + 1), generator=generator)
        yield {
            "tokens": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "loss_mask": torch.ones(1, length),
            "position_ids": torch.arange(length)[None],
            "document_starts": torch.zeros(1, length, dtype=torch.bool),
        }


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(arguments: argparse.Namespace, command: str) -> Report:
    """Measure both sides.

    Raises:
        RuntimeError: a side failed, or the two wrote different amounts.
    """
    sides: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        print(f"{side} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            sides[side] = _in_own_process(side, folder, arguments)
    written = {side: found["bytes"] for side, found in sides.items()}
    # Plain files (the configuration, the record) name the folder and may differ by some bytes.
    if abs(written["foreground"]["all"] - written["background"]["all"]) > 1e-3 * written["foreground"]["all"]:
        raise RuntimeError(f"the two ways do not write the same: {written}")
    return _report(arguments, command, sides)


def _report(arguments: argparse.Namespace, command: str, sides: dict[str, dict[str, Any]]) -> Report:
    sizes = sides["foreground"]["bytes"]
    gigabytes = sizes["all"] / GB
    tables = arguments.memories * (arguments.num_subkeys**2 * 512 + arguments.num_subkeys * 512) * 4 / GB
    rows = []
    for side, found in sides.items():
        held, published = (statistics.median(found[name]) for name in ("held", "published"))
        meanwhile = f"{1e3 * statistics.median(found['meanwhile']):.0f}" if found["meanwhile"] else ""
        rows.append(
            [
                side, f"{held:.2f}", f"{held / gigabytes:.2f}", f"{published:.2f}", f"{published / gigabytes:.2f}",
                f"{1e3 * statistics.median(found['alone']):.0f}", meanwhile, f"{found['load'] / gigabytes:.2f}",
            ]
        )  # fmt: skip
    notes = [
        f"One process, {arguments.memories} memories of {arguments.num_subkeys}^2 slots of 512 float32 numbers on a "
        f"small model. A checkpoint is {gigabytes:.2f} GB: {sizes['fast_weights'] / GB:.3f} GB for {tables:.3f} GB of "
        f"tables, {sizes['model'] / GB:.3f} GB of slow weights and optimizer states. `held` are the seconds in which "
        "training stands still, `published` those until the checkpoint counts (every file written and synced to disk, "
        f"renamed, the one before deleted). Medians of {arguments.repeats} saves. Steps are of one sequence of 512 "
        "tokens; `meanwhile` while a checkpoint is being written.",
    ]
    header = ["way", "held s", "s/GB", "published s", "s/GB", "step ms", "step ms meanwhile", "load s/GB"]
    data = {"memories": arguments.memories, "num_subkeys": arguments.num_subkeys, "sides": sides}
    data["load_average"] = os.getloadavg()
    return Report("checkpoint", "Saving large memories", notes, header, rows, data, provenance(command))


def _in_own_process(side: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    numbers = (arguments.memories, arguments.num_subkeys, arguments.repeats)
    command = [sys.executable, "-m", "benchmarks.checkpoint", side, folder, *map(str, numbers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{side} failed with exit code {result.returncode}:\n{result.stderr}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--memories", type=int, default=2, choices=range(1, 5), help="layers with one (default: 2)")
    parser.add_argument("--num-subkeys", type=int, default=512, help="slots are its square (default: 512)")
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure (default: the system's)")
    parser.add_argument("--repeats", type=int, default=3, help="saves per way (default: 3)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the JSON and Markdown report"
    )


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Measure as the parsed arguments say."""
    return measure(arguments, command)


if __name__ == "__main__":
    _, side_name, save_folder, *counts = sys.argv
    print(json.dumps(measure_side(side_name, save_folder, *map(int, counts))))
