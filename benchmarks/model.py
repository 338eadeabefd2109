"""A memory layer and a whole model, in training: what the memory costs where it is used. Needs megatron-core."""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks import green, hardware
from benchmarks.hardware import GIB
from benchmarks.report import Goal, Report, add_output_argument, provenance
from benchmarks.roofline import prediction_note

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from megatron_fwpkm.config import PretrainConfig

LAYER_MILLISECONDS = 3.0
"""Goal of one layer, forward and backward, of 8 sequences of 4096 tokens."""
MODEL_RATIO = 1.3
"""Goal of three layers in the 112M model: a step with them over a step without."""

SIZES = {
    "paper": [
        "--config", "examples/paper/base_112m.yaml", "--layer-pattern", "swa", "--window-size", "511,0",
        "--global-batch-size", "16",
    ],
    "tiny": [
        "--num-layers", "3", "--hidden-size", "32", "--ffn-hidden-size", "48", "--num-attention-heads", "4",
        "--num-query-groups", "2", "--seq-length", "32", "--layer-pattern", "swa:15", "--vocab-size", "128",
        "--micro-batch-size", "2", "--global-batch-size", "2", "--num-threads", "1", "--fwpkm-layer-numbers", "2", "3",
        "--fwpkm-num-subkeys", "16", "--fwpkm-key-dim", "16", "--fwpkm-value-dim", "16", "--fwpkm-topk", "4",
        "--fwpkm-chunk-size", "16",
    ],
}  # fmt: skip
"""`paper`: the paper's 112M model with sliding attention over 512 tokens, two micro-batches of 8 sequences a step.
`tiny`: to see that everything runs."""


def add_layer_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmark of one layer."""
    _add_arguments(parser, repeats=10)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmark of a whole model."""
    _add_arguments(parser, repeats=5)


def _add_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    parser.add_argument("--size", choices=list(SIZES), help="default: paper on a GPU, tiny elsewhere")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"timed steps (default: {repeats})")
    parser.add_argument("--cuda-graph", action="store_true", help="run the memories in CUDA graphs")
    green.add_arguments(parser)
    add_output_argument(parser)


def run_layer(arguments: argparse.Namespace, command: str) -> Report:
    """One memory layer, forward and backward.

    Raises:
        RuntimeError: the tests are not green, or there is no device for --cuda-graph.
    """
    return _run(arguments, command, "layer", _measure_layer)


def run_model(arguments: argparse.Namespace, command: str) -> Report:
    """A training step of the model with its memories and without them.

    Raises:
        RuntimeError: the tests are not green, or there is no device for --cuda-graph.
    """
    return _run(arguments, command, "model", _measure_model)


Measured = tuple[list[list[str]], list[Goal], list[dict[str, Any]], str]
"""Rows, goals, data, and a sentence on what was measured."""


def _run(
    arguments: argparse.Namespace,
    command: str,
    name: str,
    measure: Callable[[PretrainConfig, torch.device, int], Measured],
) -> Report:
    device = hardware.resolve("auto")
    if arguments.cuda_graph and device != "cuda":
        raise RuntimeError(
            "--cuda-graph needs a CUDA device, and there is none; leave it out to measure without graphs"
        )
    from megatron_fwpkm.config.loading import parse_pretrain
    from megatron_fwpkm.distributed.startup import silence_known_warnings
    from megatron_fwpkm.libraries.probes import installed

    installed()  # hides from Megatron what is only half installed
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    tests = green.require_green(arguments, device)
    size = arguments.size or ("paper" if device == "cuda" else "tiny")
    config = parse_pretrain(SIZES[size] + ["--fwpkm-cuda-graph", "on"] * arguments.cuda_graph).config
    silence_known_warnings()
    with megatron_run(config.parallel, config.training) as world:
        rows, goals, data, text = measure(config, world.device, arguments.repeats)
    if size != "paper" or device != "cuda":
        goals = [replace(goal, met=None) for goal in goals]
    notes = [
        f"{text} On {hardware.title(device)}, size `{size}`"
        + (", memories in CUDA graphs" if arguments.cuda_graph else "")
        + f". Time is the median of {arguments.repeats} steps "
        + ("on the device's clock." if device == "cuda" else "in CPU time."),
    ]
    if device == "cuda" and size == "paper" and (predicted := prediction_note(name, hardware.title(device))):
        notes.append(predicted)
    header = ["what", "ms", "tokens/s", "peak GiB"]
    title = {"layer": "One memory layer, forward and backward", "model": "A training step"}[name]
    results = {"size": size, "results": data}
    stem = f"{name}_{size}" + "_graphs" * arguments.cuda_graph
    return Report(stem, title, notes, header, rows, results, provenance(command, tests), goals=goals)


def _measure_layer(config: PretrainConfig, device: torch.device, repeats: int) -> Measured:
    import torch

    from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
    from megatron_fwpkm.models.transformer_config import transformer_config

    shape = config.model.seq_length, config.training.micro_batch_size, config.model.hidden_size
    dtype = torch.bfloat16 if config.training.bf16 else torch.float32
    layer = FastWeightMemoryLayer(transformer_config(config), config.fwpkm.layer_numbers[0]).to(device)
    hidden = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    direction = torch.randn(shape, device=device, dtype=dtype)
    wanted = [hidden, *layer.parameters()]
    if config.fwpkm.cuda_graph == "on":
        layer.capture(1, hidden.detach())

    def step() -> None:
        """One backward pass of the layer."""
        torch.autograd.grad(layer(hidden), wanted, direction)

    milliseconds, peak = _time(step, str(device), repeats)
    rows = [_row("one layer", milliseconds, shape[0] * shape[1], peak)]
    name = f"one layer, forward and backward, {shape[1]} sequences of {shape[0]} tokens"
    goal = Goal(name, f"{milliseconds:.2f} ms", f"< {LAYER_MILLISECONDS:g} ms", milliseconds < LAYER_MILLISECONDS)
    text = f"{shape[1]} sequences of {shape[0]} tokens, hidden size {shape[2]}, {str(dtype).removeprefix('torch.')}."
    return rows, [goal], [{"what": "layer", "milliseconds": milliseconds, "peak_bytes": peak}], text


def _measure_model(config: PretrainConfig, device: torch.device, repeats: int) -> Measured:
    without = replace(config, fwpkm=replace(config.fwpkm, layer_numbers=()))
    batch, length = config.training.global_batch_size, config.model.seq_length
    assert batch is not None
    rows, data, times = [], [], []
    for name, one in (("without memory", without), ("with memory", config)):
        print(f"{name} ...", file=sys.stderr, flush=True)
        milliseconds, peak, parameters = _time_training(one, device, repeats)
        times.append(milliseconds)
        rows.append(_row(f"{name}, {parameters / 1e6:.0f}M parameters", milliseconds, batch * length, peak))
        data.append({"what": name, "milliseconds": milliseconds, "peak_bytes": peak, "parameters": parameters})
    ratio, layers = times[1] / times[0], len(config.fwpkm.layer_numbers)
    goal = Goal(f"model with {layers} memories over without", f"{ratio:.2f}x", f"< {MODEL_RATIO}x", ratio < MODEL_RATIO)
    text = f"A step of {batch} sequences of {length} tokens, micro-batches of {config.training.micro_batch_size}, with "
    return rows, [goal], data, text + "gradients, clipping and optimizer."


def _time_training(config: PretrainConfig, device: torch.device, repeats: int) -> tuple[float, int, int]:
    """(median milliseconds of a training step, peak bytes, parameters); the model is gone afterwards."""
    from megatron_fwpkm.config.derived import embedding_rows
    from megatron_fwpkm.engines.megatron import MegatronEngine

    assert config.data.vocab_size is not None
    rows = embedding_rows(config, config.data.vocab_size)
    gc.collect()  # of what stood before
    engine = MegatronEngine(config, rows, device)
    shape = config.training.micro_batch_size, config.model.seq_length
    batches = itertools.cycle([_batch(shape, config.data.vocab_size, seed, device) for seed in range(4)])
    milliseconds, peak = _time(lambda: engine.train_step(batches), str(device), repeats)
    return milliseconds, peak, sum(parameter.numel() for chunk in engine.chunks for parameter in chunk.parameters())


def _batch(shape: tuple[int, int], vocabulary: int, seed: int, device: torch.device) -> dict[str, Tensor]:
    import torch

    tokens = torch.randint(vocabulary, (shape[0], shape[1] + 1), generator=torch.Generator().manual_seed(seed))
    tokens = tokens.to(device)
    return {
        "tokens": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "loss_mask": torch.ones(shape, device=device),
        "position_ids": torch.arange(shape[1], device=device).expand(shape).contiguous(),
        "document_starts": torch.zeros(shape, dtype=torch.bool, device=device),
    }


def _time(step: Callable[[], Any], device: str, repeats: int) -> tuple[float, int]:
    """(median milliseconds, peak bytes) after steps that are not counted, three or as many as are."""
    hardware.reset_peak(device)
    milliseconds = hardware.time_calls(step, device, repeats, warm_up=min(3, repeats))
    return statistics.median(milliseconds), hardware.peak_bytes(device)


def _row(name: str, milliseconds: float, tokens: int, peak: int) -> list[str]:
    return [name, f"{milliseconds:.2f}", f"{1e3 * tokens / milliseconds:,.0f}", f"{peak / GIB:.2f}"]
