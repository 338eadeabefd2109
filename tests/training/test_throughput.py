"""--log-throughput: FLOPs and MFU by hand, and the memories' bytes against the tensors that really move."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.device_peaks import bf16_peak_tflops
from megatron_fwpkm.config.kind_rows.fwpkm_kind import FWPKM
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.model_flops import training_flops
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.distributed.startup import World
from megatron_fwpkm.engines.memory_report import LayerStatistics, MemoryReport
from megatron_fwpkm.ops import FastWeightState, MemoryOptions, fast_weight_memory_, flush_pending_, make_rounding
from megatron_fwpkm.training import throughput
from megatron_fwpkm.training.metrics import read_records
from megatron_fwpkm.training.throughput import Throughput
from tests.test_pretrain import dataset, flags, losses, start  # noqa: F401

SMALL = (
    "--dry-run --seq-length 20 --fwpkm-layer-numbers 2 --fwpkm-num-subkeys 8 --fwpkm-key-dim 8 --fwpkm-value-dim 16 "
    "--fwpkm-num-heads 2 --fwpkm-topk 3 --fwpkm-chunk-size 6 --log-throughput"
)
FEW = {"train_iters": 4, "eval_iters": 0, "log_interval": 2}


def configured(words: str = "") -> PretrainConfig:
    return parse_pretrain([*SMALL.split(), *words.split()]).config


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_peaks_are_found_by_the_names_of_devices(name: str, peak: float | None) -> None:
    assert bf16_peak_tflops(name) == peak


def test_figures_are_per_device() -> None:
    config, world = configured("--peak-tflops 2"), World(0, 4, torch.device("cpu"))
    report = MemoryReport({2: LayerStatistics(0.5, 0.1, 0.25, 1.0, -1.0)}, {2: 1.0}, {2: True})
    found = Throughput(config, 100, world).figures(8000, 2.0, report)
    flops = training_flops(config, 100) * 1000 / 1e12
    assert FWPKM.traffic is not None
    moved = FWPKM.traffic(config, 0.75).total * 1000 / 1e9
    assert found == pytest.approx({"tflops_per_device": flops, "mfu": flops / 2, "memory_gb_per_second": moved})
    plain = configured("--fwpkm-layer-numbers none")
    assert Throughput(plain, 100, world).figures(8, 2.0, MemoryReport({}, {}, {})).keys() == {"tflops_per_device"}
    assert Throughput(configured("--no-log-throughput"), 100, world).figures(8, 2.0, report) == {}


def test_a_known_device_has_a_peak_in_bf16_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput.torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    world, report = World(0, 1, torch.device("cuda", 0)), MemoryReport({}, {}, {})
    found = Throughput(configured("--bf16"), 100, world).figures(100, 1.0, report)
    assert found["mfu"] == pytest.approx(found["tflops_per_device"] / 989.5)
    assert "mfu" not in Throughput(configured(), 100, world).figures(100, 1.0, report)
    given = Throughput(configured("--bf16 --peak-tflops 500"), 100, world).figures(100, 1.0, report)
    assert given["mfu"] == pytest.approx(given["tflops_per_device"] / 500)


class Moved(TorchDispatchMode):
    """Bytes of rows that leave a table, come back, and leave the log."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table, self.log, self.bytes = table.data_ptr(), set[int](), Counter[str]()
        self.kept: list[torch.Tensor] = []
        self.backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "index_select" and args[0].data_ptr() == self.table:
            self.bytes["reads"] += found.nbytes
            self.kept.append(found)  # an address is not given again while its tensor lives
            self.log.add(found.data_ptr())
        elif name in ("index_copy_", "index_put_") and args[0].data_ptr() == self.table:
            self.bytes["writes"] += args[3 if name == "index_copy_" else 2].nbytes
        elif self.backward and name in ("_embedding_bag_per_sample_weights_backward", "_to_copy"):
            rows = args[name.startswith("_embedding")]
            self.bytes["out of the log"] += rows.nbytes * (rows.data_ptr() in self.log)
        return found


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--seq-length 18",
        "--seq-length 19 --fwpkm-lookahead 2",
        "--fwpkm-inner-lr 0",
        "--fwpkm-boundary carry",
        "--fwpkm-boundary carry --fwpkm-lookahead 3 --seq-length 9",
        "--fwpkm-boundary carry --fwpkm-chunk-size 19",
        "--fwpkm-table-dtype bf16",
    ],
)
def test_the_bytes_of_the_memory_are_those_of_the_rows_that_move(words: str) -> None:
    config = configured(words)
    fwpkm, length = config.fwpkm, config.model.seq_length
    batch, options = 2, replace(MemoryOptions.of(fwpkm), topk=1, addressing_weight=0.0)
    tokens, generator = batch * length, torch.Generator().manual_seed(0)
    # Every token's query is a pair of sub-keys of its own, so that no two tokens read the same slot.
    keys = torch.randn(1, 2, tokens, 4, generator=generator)
    queries = keys[0].transpose(0, 1).reshape(batch, length, 1, 8).clone().requires_grad_()
    targets = torch.randn(batch, length, 16, generator=generator, requires_grad=True)
    narrow = fwpkm.table_dtype == "bf16"
    values = torch.zeros(tokens**2, 16, dtype=torch.bfloat16 if narrow else torch.float32)
    state = FastWeightState(keys, values, None, make_rounding(1, 0) if narrow else None)
    with Moved(state.values) as moved:
        output = fast_weight_memory_(queries, targets, None, state, options)
        with torch.no_grad():
            flush_pending_(output.state, options)
        moved.backward = True
        output.retrieved.sum().backward()
    assert FWPKM.traffic is not None
    one = replace(config, fwpkm=replace(fwpkm, topk=1, num_heads=1))
    expected = FWPKM.traffic(one, 1.0)
    assert moved.bytes["reads"] == pytest.approx(expected.reads * tokens)
    assert moved.bytes["writes"] == pytest.approx(expected.writes * tokens)
    assert 2 * moved.bytes["out of the log"] == pytest.approx(expected.undo_log * tokens)


def test_shares_and_sizes_of_the_traffic() -> None:
    assert FWPKM.traffic is not None
    full, half = FWPKM.traffic(configured(), 1.0), FWPKM.traffic(configured(), 0.5)
    assert (half.reads, half.total) == (full.reads / 2, full.total / 2)
    assert full.reads == 2 * 3 * 16 * 4  # heads, slots and the bytes of a row
    rounded = FWPKM.traffic(configured("--fwpkm-undo-log bf16"), 1.0)
    assert (rounded.reads, rounded.undo_log) == (full.reads, full.undo_log / 2)


def test_a_run_records_it_and_learns_the_same(
    dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    plain, timed = tmp_path / "plain", tmp_path / "timed"
    assert start(flags(dataset, log_dir=plain, **FEW)) == 0
    assert start(flags(dataset, log_dir=timed, log_throughput=True, peak_tflops=0.5, **FEW)) == 0
    assert losses(timed) == losses(plain)
    assert "TFLOP/s per device (" in capfd.readouterr().out
    for record in (found for found in read_records(timed / "metrics.jsonl") if found["kind"] == "train"):
        assert record["mfu"] == pytest.approx(2 * record["tflops_per_device"])
        assert 0 < record["memory_gb_per_second"] < 100
    assert all("mfu" not in record for record in read_records(plain / "metrics.jsonl"))


def test_a_peak_without_the_figures_is_refused() -> None:
    (said,) = problems(parse_pretrain(["--dry-run", "--peak-tflops", "5"]).config)
    assert said == "--peak-tflops 5 has no effect without --log-throughput: add it"
