"""How long the memory should take on GPUs that are not here: a prediction from counted launches and bytes.

Every launch of a layer's forward and backward is counted at the paper's shape (benchmarks/counting.py); what one costs
is in benchmarks/cost_model.py, and what changes would gain that are not built is in benchmarks/not_built.py. Nothing
here was measured on a GPU; the GPU suite prints measurements beside these predictions.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import cost_model
from benchmarks.cost_model import GPUS, KERNEL_SECONDS, Gpu, Surroundings, Work, layer_costs, model_seconds, work_of
from benchmarks.launches import CHUNKS, RECORD
from benchmarks.not_built import chains_table, not_built, not_built_table
from benchmarks.report import RESULTS, VERDICTS, Goal, Report, add_output_argument, provenance

LAYER = "layer triton bf16 reset=never TP1"
MODEL_RATIO, LAYER_MILLISECONDS = 1.3, 3.0
MEANT_FOR = ("H100", "H200")
"""What the goals are for; one of them is enough."""


@dataclass(frozen=True)
class Prediction:
    """Of one GPU, in milliseconds, forward and backward together.

    Attributes:
        device: the GPU's work of a layer, launch after launch.
        host: the host's time of a layer without CUDA graphs.
        layer: of a layer, without CUDA graphs and with.
        model: of a micro-batch of the model without memories.
        ratio: of the model with its memories to the model without: `eager` where the host has worked ahead, `host`
            where it has not, and `graph`.
        kernels: by kernel or operator: launches, megabytes of one, microseconds of all, and what bounds it.
    """

    device: dict[str, float]
    host: float
    layer: dict[str, float]
    model: float
    ratio: dict[str, float]
    kernels: dict[str, dict[str, Any]]


def predict(gpu: Gpu, work: list[Work], around: Surroundings) -> Prediction:
    """Of a layer's launches, forward and backward, on a GPU."""
    costs = layer_costs(gpu, work, around)
    return Prediction(
        device={name: 1e3 * seconds for name, seconds in costs.device.items()},
        host=1e3 * costs.host,
        layer={name: 1e3 * seconds for name, seconds in costs.layer.items()},
        model=1e3 * model_seconds(gpu, around),
        ratio=costs.ratio,
        kernels=_by_kernel(work, gpu, costs.host / max(1, sum(one.launches for one in work))),
    )


def _by_kernel(work: list[Work], gpu: Gpu, host_seconds: float) -> dict[str, dict[str, Any]]:
    """What every kernel or operator takes, most first; `host` bounds one that the host needs longer to launch."""
    found: dict[str, dict[str, Any]] = {}
    for one in work:
        entry = found.setdefault(one.what, {"launches": 0, "bytes": 0.0, "microseconds": 0.0, "bounds": {}})
        parts = one.parts(gpu, KERNEL_SECONDS)
        seconds = max(parts.values())
        bound = "host" if host_seconds * one.launches > seconds else max(parts, key=lambda part: parts[part])
        entry["launches"] += 1
        entry["bytes"] += one.bytes
        entry["microseconds"] += 1e6 * seconds
        entry["bounds"][bound] = entry["bounds"].get(bound, 0.0) + seconds
    for entry in found.values():
        bounds = entry.pop("bounds")
        entry["bound"] = max(bounds, key=lambda bound: bounds[bound])
    return dict(sorted(found.items(), key=lambda item: -item[1]["microseconds"]))


def model_flops() -> tuple[float, int]:
    """Operations of a micro-batch of the paper's 112M model without memories, and how many memories it has."""
    from benchmarks.model import SIZES
    from megatron_fwpkm.config.loading import parse_pretrain
    from megatron_fwpkm.config.model_flops import training_flops

    config = parse_pretrain(SIZES["paper"]).config
    without = replace(config, fwpkm=replace(config.fwpkm, layer_numbers=()))
    assert config.data.vocab_size is not None
    tokens = config.training.micro_batch_size * config.model.seq_length
    return tokens * training_flops(without, config.data.vocab_size), len(config.fwpkm.layer_numbers)


def count_layer() -> tuple[dict[str, list[Work]], Surroundings]:
    """The launches of a layer by phase, as they are counted now, and what they stand in; the host's time is recorded.

    Raises:
        RuntimeError: a kernel has no formula.
    """
    from benchmarks.counted_calls import Subject, count, paper_shape
    from megatron_fwpkm.distributed.startup import silence_known_warnings
    from megatron_fwpkm.libraries.probes import installed

    silence_known_warnings()
    installed()  # hides from Megatron what is only half installed
    shape = paper_shape(CHUNKS)
    counted = count(Subject("layer", "triton", "bf16"), shape)
    phases = {name: work_of(phase, shape.num_subkeys**2, CHUNKS) for name, phase in counted.items()}
    times = json.loads(RECORD.read_text())["data"]["host"][LAYER]
    host = 1e-3 * (times["forward"] + times["backward"])
    launches = sum(one.launches for phase in phases.values() for one in phase)
    waits = sum(sum(phase.waits.values()) for phase in counted.values())
    return phases, Surroundings(host / launches, waits, *model_flops())


def predicted(gpu_name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """A written prediction for a GPU by the name that its driver gives it, or None where there is none.

    Args:
        gpu_name: such as `NVIDIA H200`.
        folder: where `python -m benchmarks.run roofline --output FOLDER` has written it.

    Returns:
        The fields of `Prediction`.
    """
    recorded = json.loads((folder / "roofline.json").read_text())["data"]["predictions"]
    return next((found for name, found in recorded.items() if name in gpu_name), None)


def prediction_note(what: str, gpu_name: str, folder: Path = RESULTS) -> str | None:
    """A sentence to stand beside a measurement, or None where there is no prediction for the GPU.

    Args:
        what: `layer` or `model`.
        gpu_name: by its driver.
        folder: as for `predicted`.
    """
    found = predicted(gpu_name, folder)
    if found is None:
        return None
    if what == "layer":
        layer, alone = found["layer"], found["device"]["eager"]
        text = f"{layer['eager']:.2f} ms, {layer['graph']:.2f} with CUDA graphs; the GPU's work alone {alone:.2f}"
    else:
        ratio = found["ratio"]
        text = f"{ratio['eager']:.2f} to {ratio['host']:.2f} times the model without memories, {ratio['graph']:.2f} "
        text += "with CUDA graphs"
    return f"Predicted (benchmarks/results/roofline.md): {text}."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=1, help="without effect: nothing is measured")
    add_output_argument(parser)


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Predict for every GPU."""
    phases, around = count_layer()
    work = [one for phase in phases.values() for one in phase]
    predictions = {name: predict(gpu, work, around) for name, gpu in GPUS.items()}
    changes = not_built(phases, around, CHUNKS)
    header = ["what", "launches", "MB of one", *predictions]
    rows = [[name, "", "", *cells] for name, cells in _totals(predictions).items()]
    shown = list(predictions.values())
    for kernel, entry in shown[0].kernels.items():
        cells = [one.kernels[kernel] for one in shown]
        size = f"{entry['bytes'] / entry['launches'] / 1e6:.2f}"
        rows.append([kernel, str(entry["launches"]), size, *(f"{c['microseconds']:.0f} {c['bound']}" for c in cells)])
    notes = [
        "Predicted, not measured, and no GPU was used: one memory layer in bfloat16 and the paper's 112M model with "
        f"sliding attention, 8 sequences of {CHUNKS} chunks of 512 tokens, reads spread evenly over the table. Every "
        "launch takes as long as its bytes, its operations, or the least that a kernel takes. All constants, with "
        "their sources, are in benchmarks/cost_model.py, the bytes of a kernel in benchmarks/kernel_traffic.py.",
        "The rows of kernels and operators are microseconds of all launches of a forward and a backward, and what "
        "bounds them: memory, compute, latency (the least a kernel takes) or, without CUDA graphs, the host, which "
        "then needs longer for the launch than the GPU for the work.",
    ]
    data = {
        "predictions": {name: asdict(one) for name, one in predictions.items()},
        "not_built": changes,
        "gpus": _constants(),
    }
    tables = [not_built_table(changes), chains_table(phases, CHUNKS)]
    goals, title = _goals(predictions), "Predicted times on GPUs"
    return Report("roofline", title, notes, header, rows, data, provenance(command), goals=goals, tables=tables)


def _totals(predictions: dict[str, Prediction]) -> dict[str, list[str]]:
    """The rows above the kernels."""
    shown = predictions.values()
    return {
        "**layer, ms**": [f"{one.layer['eager']:.2f}" for one in shown],
        "**layer with CUDA graphs, ms**": [f"{one.layer['graph']:.2f}" for one in shown],
        "of the GPU, ms": [f"{one.device['eager']:.2f}" for one in shown],
        "of the host, ms": [f"{one.host:.2f}" for one in shown],
        "model without memories, ms": [f"{one.model:.1f}" for one in shown],
        "**model with three memories, times**": [
            f"{one.ratio['eager']:.2f} to {one.ratio['host']:.2f}" if one.ratio["eager"] < one.ratio["host"]
            else f"{one.ratio['eager']:.2f}" for one in shown
        ],
        "**with CUDA graphs, times**": [f"{one.ratio['graph']:.2f}" for one in shown],
    }  # fmt: skip


def _constants() -> dict[str, Any]:
    """What the predictions assume, for the record."""
    named = {name: value for name, value in vars(cost_model).items() if name.isupper() and isinstance(value, float)}
    return {**named, **{name: asdict(gpu) for name, gpu in GPUS.items()}}


def _goals(predictions: dict[str, Prediction]) -> list[Goal]:
    """Of an H100 or H200: met by one of them, which is said."""
    goals = []
    for way, how in (("eager", "without CUDA graphs"), ("graph", "with CUDA graphs")):
        layers = {name: predictions[name].layer[way] for name in MEANT_FOR}
        ratios = {name: predictions[name].ratio["host" if way == "eager" else way] for name in MEANT_FOR}
        goals.append(_goal(f"layer, {how}", layers, LAYER_MILLISECONDS, " ms"))
        goals.append(_goal(f"model, {how}", ratios, MODEL_RATIO, "x"))
    return goals


def _goal(what: str, found: dict[str, float], limit: float, unit: str) -> Goal:
    """One for several GPUs, of which one is enough."""
    by_gpu = [f"{name} {value:.2f}{unit} ({VERDICTS[value < limit]})" for name, value in found.items()]
    met = any(value < limit for value in found.values())
    return Goal(f"{what}, on an {' or '.join(found)}", ", ".join(by_gpu), f"< {limit:g}{unit}", met)
