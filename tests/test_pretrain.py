"""pretrain.py as a user meets it: whole runs on a small dataset, resuming, signals, wrong inputs, several processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

import pretrain
from megatron_fwpkm.checkpoint.checkpoint_reader import CheckpointContents, read_checkpoint
from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.config.cli import run_cli
from megatron_fwpkm.data.indexed.indexed_format import IndexedWriter, token_dtype
from megatron_fwpkm.data.tokenizers import build_tokenizer
from megatron_fwpkm.training.metrics import read_records
from tests.checkpoint.contents import in_memory
from tests.spawned_ranks import run_distributed
from tests.training.double_precision import double_precision

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = 60


def write_dataset(prefix: Path, documents: int = 40) -> str:
    """Documents in which every number follows the last one by a fixed step, so that there is something to learn."""
    dtype = token_dtype(NUMBERS + 1)
    generator = np.random.default_rng(0)
    with IndexedWriter(prefix, dtype) as writer:
        for _ in range(documents):
            start, step = generator.integers(0, NUMBERS, 2)
            tokens = np.append((start + step * np.arange(50)) % NUMBERS, NUMBERS).astype(dtype)
            writer.append(tokens.tobytes(), array("i", [len(tokens)]))
        tokenizer = build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=NUMBERS))
        made = {"type": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "identity": tokenizer.identity}
        writer.publish({"tokenizer": made})
    return str(prefix)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


def flags(dataset: str, **changes: Any) -> list[str]:
    """A small run; `changes` set, replace or (None) remove flags."""
    chosen: dict[str, Any] = {
        "data_path": dataset,
        "tokenizer_type": "NullTokenizer",
        "vocab_size": NUMBERS,
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "seq_length": 32,
        "make_vocab_size_divisible_by": 16,
        "fwpkm_layer_numbers": 2,
        "fwpkm_num_subkeys": 8,
        "fwpkm_key_dim": 16,
        "fwpkm_value_dim": 16,
        "fwpkm_topk": 2,
        "fwpkm_chunk_size": 8,
        "micro_batch_size": 2,
        "global_batch_size": 4,
        "train_iters": 20,
        "lr": 1e-2,
        "eval_interval": 10,
        "eval_iters": 1,
        "split": "80,10,10",
        "log_interval": 5,
        "num_threads": 1,
        **changes,
    }
    words: list[str] = []
    for name, value in chosen.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None:
            words += [flag, *str(value).split()]
    return words


def start(argv: list[str]) -> int:
    """pretrain.py in this process."""
    return run_cli(pretrain.main, argv)


def losses(folder: Path) -> dict[int, tuple[float, float]]:
    return {
        r["iteration"]: (r["loss"], r["grad_norm"])
        for r in read_records(folder / "metrics.jsonl")
        if r["kind"] == "train"
    }


def assert_same_checkpoint(one: CheckpointContents, other: CheckpointContents) -> None:
    assert one.slow.keys() == other.slow.keys() and one.fast.keys() == other.fast.keys() == {2}
    assert [name for name in one.slow if not torch.equal(one.slow[name], other.slow[name])] == []
    assert torch.equal(one.fast[2].tables["values"], other.fast[2].tables["values"])
    assert torch.equal(one.fast[2].tables["sub_keys"], other.fast[2].tables["sub_keys"])


def test_twenty_steps_equal_ten_and_resume_and_ten(
    dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert start(flags(dataset, save=whole, bf16=True)) == 0
    output = capfd.readouterr().out
    assert re.search(
        r"iteration 20/20 \| loss .* tokens/s \| gate 0\.\d\d \| slots .* \| memorization .* \| ETA 0:00", output
    )
    assert "validation at iteration 20" in output and "test at iteration 20" in output
    assert f"checkpoint: {whole}/iter_0000020" in output
    assert f"metrics: {whole}/metrics.jsonl" in output
    # Stopped between two log records, too.
    assert start(flags(dataset, save=halves, bf16=True, exit_interval=7)) == 0
    assert "stopped at --exit-interval 7" in capfd.readouterr().out
    assert start(flags(dataset, save=halves, bf16=True, resume=True)) == 0
    assert f"resumed from {halves}/iter_0000007: iteration 7, 28 samples" in capfd.readouterr().out
    assert losses(halves) == losses(whole)
    seen = losses(whole)
    assert sorted(seen) == [5, 10, 15, 20] and seen[20][0] < seen[5][0]
    assert_same_checkpoint(read_checkpoint(whole), read_checkpoint(halves))
    validation = read_checkpoint(whole).validation
    assert validation is not None and validation["iteration"] == 20 and validation["lm_loss"] > 1
    assert read_checkpoint(halves).validation == validation
    # A finished run says so and does nothing.
    assert start(flags(dataset, save=halves, bf16=True, resume=True)) == 0
    assert "nothing to do: the run already finished at iteration 20; increase --train-iters" in capfd.readouterr().out


def test_what_lies_in_a_checkpoint(dataset: str, tmp_path: Path) -> None:
    assert start(flags(dataset, save=tmp_path, train_iters=2, eval_iters=0)) == 0
    folder = tmp_path / "iter_0000002"
    names = {path.name for path in folder.iterdir()}
    assert names == {"model", "fast_weights", "run.json", "config.yaml", "rng_00000.pt"}
    record = json.loads((folder / "run.json").read_text())
    assert (record["iteration"], record["consumed_samples"], record["vocab_size"]) == (2, 8, NUMBERS + 1)
    (saved,) = (found for found in read_records(tmp_path / "metrics.jsonl") if found["kind"] == "save")
    files = (path for path in folder.rglob("*") if path.is_file())
    assert (saved["iteration"], saved["bytes"]) == (2, sum(len(path.read_bytes()) for path in files))
    assert (tmp_path / "latest").read_text() == "iter_0000002\n"
    contents = read_checkpoint(tmp_path)
    assert contents.config.model.hidden_size == 32 and contents.padded_vocab_size == 64
    assert contents.slow["embedding.word_embeddings.weight"].shape == (64, 32)
    tables = contents.fast[2].tables
    assert tables["values"].shape == (64, 16) and tables["sub_keys"].shape == (1, 2, 8, 8)
    layers = {name.split(".")[2] for name in contents.slow if name.startswith("decoder.layers.")}
    assert layers == {"0", "1"}
    assert "# command line" in (folder / "config.yaml").read_text()


def test_finetuning_takes_weights_and_memory_and_starts_anew(
    dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(flags(dataset, save=tmp_path / "first", train_iters=4, eval_iters=0)) == 0
    # One step at the warm-up's start (learning rate 0) with a frozen memory changes nothing.
    still = {"train_iters": 1, "lr_warmup_iters": 1, "lr_decay_iters": 2, "eval_iters": 0, "fwpkm_inner_lr": 0}
    places = {"load": tmp_path / "first", "save": tmp_path / "second"}
    assert start(flags(dataset, finetune=True, seed=7, **places, **still)) == 0
    assert "loaded weights and fast weights from" in capfd.readouterr().out
    assert_same_checkpoint(read_checkpoint(tmp_path / "first"), read_checkpoint(tmp_path / "second"))
    second = json.loads((tmp_path / "second" / "iter_0000001" / "run.json").read_text())
    assert second["consumed_samples"] == 4


@pytest.fixture(scope="module")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The --save folder of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    assert start(flags(dataset, save=folder, train_iters=2, eval_iters=0)) == 0
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_path": "{tmp}/nowhere"}, "nowhere"),
        ({"data_path": None}, "--data-path"),
        ({"data_path": "{tmp}/empty"}, "contains no documents"),
        ({"vocab_size": 30}, "made with a different tokenizer"),
        (
            {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": "{tmp}/no.model", "vocab_size": None},
            "no.model does not exist",
        ),
        ({"global_batch_size": 3}, "--global-batch-size 3"),
        ({"tensor_model_parallel_size": 2}, "--tensor-model-parallel-size 2"),
        ({"fwpkm_layer_numbers": 3}, "--fwpkm-layer-numbers 3"),
        ({"save": "{tmp}/file/below"}, "--save .* cannot be written"),
        ({"log_dir": "{tmp}/file/below"}, "--log-dir .* cannot be written"),
        ({"save": "{trained}"}, "already contains iter_0000002; continue with --resume"),
        ({"save": "{trained}", "resume": True, "hidden_size": 48}, "--hidden-size is 32 in the .* 48 in this"),
        ({"save": "{trained}", "resume": True, "fwpkm_num_subkeys": 16}, "num-subkeys is 8 in the .* 16 in this"),
        ({"save": "{trained}", "resume": True, "seed": 5}, "--seed is 1234 in the checkpoint .*--finetune"),
        ({"load": "{tmp}/file"}, "file is not a folder"),
        ({"load": "{tmp}"}, "is not a checkpoint: it has no run.json"),
        ({"fwpkm_num_subkeys": 120_000}, r"need \S+ GiB on each rank.*reduce --fwpkm-num-subkeys 120000"),
        (
            {"micro_batch_size": 10**9, "global_batch_size": None},
            r"--micro-batch-size 1000000000 and --seq-length 32 need \S+ TiB on a rank for activations and undo log",
        ),
        ({"lr_warmup_iters": 20}, "--lr-warmup-iters 20"),
    ],
)  # fmt: skip
def test_wrong_inputs_end_in_one_clear_line(
    changes: dict[str, Any],
    message: str,
    dataset: str,
    trained: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    write_dataset(tmp_path / "empty", documents=0)
    filled = {k: v.format(tmp=tmp_path, trained=trained) if isinstance(v, str) else v for k, v in changes.items()}
    capfd.readouterr()
    assert start(flags(dataset, **({"log_dir": tmp_path / "log"} | filled))) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1, lines
    assert re.search(message, lines[-1]), lines
    assert "Traceback" not in "\n".join(lines)


def test_a_refused_value_of_a_file_is_told_with_its_place(
    dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("save-interval: 20\n")
    assert start(["--config", str(file), *flags(dataset)]) == 1
    error = "error: --save-interval 20 has no effect without --save: add --save (--save-interval 20 is set in"
    assert f"{error} {file}:1; " in capfd.readouterr().err
    assert start(flags(dataset, fwpkm_layer_numbers=None, train_iters=1)) == 1
    assert "the model has no memory; choose its layers" in capfd.readouterr().err


def test_a_torn_checkpoint_is_refused(dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert start(flags(dataset, save=tmp_path, train_iters=2, eval_iters=0)) == 0
    shard = next((tmp_path / "iter_0000002" / "model").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-10])
    assert start(flags(dataset, save=tmp_path, resume=True, eval_iters=0)) == 1
    assert re.search(
        r"error: .*iter_0000002 is damaged: model/\S+\.distcp has \d+ bytes instead of \d+", capfd.readouterr().err
    )


def test_a_memory_that_explodes_stops_with_its_layer_and_leaves_the_last_checkpoint(
    dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(flags(dataset, save=tmp_path, train_iters=2, eval_iters=0)) == 0
    before = in_memory(read_checkpoint(tmp_path))
    wild = {"fwpkm_inner_lr": 100, "train_iters": 60, "resume": True, "eval_iters": 0}
    assert start(flags(dataset, save=tmp_path, **wild)) == 1
    error = capfd.readouterr().err
    assert re.search(r"error: iteration \d: the memory of layer 2 is not finite .* smaller --fwpkm-inner-lr", error)
    assert_same_checkpoint(before, read_checkpoint(tmp_path))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def test_help_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported to print help')")
    before = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "pretrain.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr
    assert "--fwpkm-layer-numbers" in done.stdout
    assert time.monotonic() - before < 50  # under a second on an idle machine


@pytest.mark.slow
def test_torchrun_says_an_error_of_all_ranks_once(dataset: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv = flags(str(tmp_path / "nowhere"), log_dir=tmp_path / "log")
    done = subprocess.run(
        [*command, str(ROOT / "pretrain.py"), *argv], capture_output=True, text=True, timeout=120, env=environment()
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.match(r"error: rank [01] of 2: .*nowhere", errors[0]), done.stderr


def train_tp2_dp2(rank: int, world_size: int, argv: list[str], folder: str) -> dict[str, Any]:
    """A whole run over 4 processes, and the resumed halves of the engine in the same processes."""
    from tests.engines.test_engine import BASE, change, halves_equal_the_whole

    parallel = {"tensor_model_parallel_size": 2, "use_distributed_optimizer": True}
    config = change(change(BASE, "parallel", **parallel), "training", bf16=True)
    halves = halves_equal_the_whole(config, Path(folder) / "halves")
    with double_precision():
        assert start(argv) == 0
    return {"halves": halves}


@pytest.mark.layouts
@pytest.mark.slow
def test_four_processes_tp2_dp2(dataset: str, tmp_path: Path) -> None:
    """Same losses as one process (documents reset the memory, so replicas see what the serial run sees), in float64;
    the distributed optimizer resumes bit for bit; both replicas' memories are saved."""
    common = {"train_iters": 6, "eval_iters": 0, "log_interval": 1, "fwpkm_reset": "document", "split": "1,0,0"}
    with double_precision():
        assert start(flags(dataset, save=tmp_path / "serial", **common)) == 0
    layout = {"tensor_model_parallel_size": 2, "use_distributed_optimizer": True, "sequence_parallel": True}
    argv = flags(dataset, save=tmp_path / "parallel", exit_interval=4, **common, **layout)
    results = run_distributed(train_tp2_dp2, 4, argv, str(tmp_path), timeout=150)
    assert all(result["halves"] == results[0]["halves"] for result in results)
    store = tmp_path / "parallel" / "iter_0000004" / "fast_weights"
    assert json.loads((store / "store.json").read_text())["replicas"] == 2
    tables = {f"layer2/replica{replica}/values": torch.zeros(64, 16, dtype=torch.float64) for replica in (0, 1)}
    dcp.load(tables, checkpoint_id=store, no_dist=True)
    initial = read_checkpoint(tmp_path / "serial").fast[2].tables["values"]
    assert all(
        torch.equal(table, initial) for table in tables.values()
    )  # the same at every layout and in every replica
    # One process goes on with what four have saved.
    one_process = {**common, "use_distributed_optimizer": True, "resume": True}
    with double_precision():
        assert start(flags(dataset, save=tmp_path / "parallel", **one_process)) == 0
    serial, parallel = losses(tmp_path / "serial"), losses(tmp_path / "parallel")
    assert sorted(serial) == sorted(parallel) == [1, 2, 3, 4, 5, 6]
    for iteration, values in serial.items():
        assert parallel[iteration] == pytest.approx(values, rel=1e-10)
    one, other = read_checkpoint(tmp_path / "serial"), read_checkpoint(tmp_path / "parallel")
    for name, weight in one.slow.items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(other.slow[name], weight, rtol=1e-8, atol=1e-10)


def train_stages(rank: int, world_size: int, argvs: list[list[str]]) -> None:
    """Whole runs over all processes in float64, one after the other."""
    with double_precision():
        for argv in argvs:
            assert start(argv) == 0


@pytest.mark.slow
@pytest.mark.layouts
def test_packed_documents_through_a_pipeline(dataset: str, tmp_path: Path) -> None:
    """Every stage reads where documents begin from the data itself: training and validation as in one process."""
    common = dict.fromkeys(("reset_attention_mask", "reset_position_ids", "eod_mask_loss"), True) | {
        "fwpkm_reset": "document", "num_layers": 4, "fwpkm_layer_numbers": "1 4", "train_iters": 4, "log_interval": 1,
        "eval_interval": 2, "global_batch_size": 8,
    }  # fmt: skip
    pipeline = {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2}
    layouts = {
        "tensors": pipeline | {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "context": pipeline | {"context_parallel_size": 2},
    }
    with double_precision():
        assert start(flags(dataset, save=tmp_path / "serial", **common)) == 0
    argvs = [flags(dataset, save=tmp_path / name, **common, **layout) for name, layout in layouts.items()]
    run_distributed(train_stages, 4, argvs, timeout=200)
    serial, *others = (
        {(r["kind"], r["iteration"]): r["loss"] for r in read_records(tmp_path / name / "metrics.jsonl") if "loss" in r}
        for name in ("serial", *layouts)
    )
    measured = {("evaluation", 2), ("evaluation", 4), ("test", 4)}
    assert set(serial) == measured | {("train", iteration) for iteration in (1, 2, 3, 4)}
    assert all(found == pytest.approx(serial, rel=1e-10) for found in others), (serial, others)
