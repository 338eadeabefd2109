"""--dry-run: what would run, in one screen, without torch and without a GPU (DESIGN section 5)."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..config import TOKENIZERS_WITHOUT_FILE, PretrainConfig
from ..config.batch_schedule import samples_ahead
from ..config.checkpoint_size import checkpoint_bytes, checkpoints_on_disk
from ..config.chunk_rules import notes_on_writing
from ..config.counted_things import count_things
from ..config.deepspeed_options import sharding_stage
from ..config.derived import (
    ShardedCount,
    data_parallel_size,
    embedding_rows,
    global_batch_size,
    micro_batches,
    replica_size,
    stage_layers,
)
from ..config.layer_kind import LAYER_KINDS, Role
from ..config.layer_kinds import kinds_in_use, layer_plan
from ..config.loading import DEFAULT, Resolved, option_groups
from ..config.memories import MemoryKind, memories_of, memory_kinds, memory_numbers
from ..config.model_flops import PASSES, forward_flops_by_part
from ..config.parameter_counts import kind_parameters, parameters_by_part
from ..config.validation import validate
from ..data.tokenizers import build_tokenizer
from ..libraries.choices import check_choices, choose_libraries, describe
from ..libraries.probes import installed
from .memory_estimate import (
    PROCESS_BYTES,
    check_step_fits,
    estimate_memory,
    format_bytes,
)

_PLAIN_WIDTH = 120
_MOST_STAGES = 8


def dry_run(resolved: Resolved, console: Console | None = None) -> int:
    """Print the resolved configuration with origins, the layer plan, parameters and memory per rank; returns 0.

    The number of processes is torchrun's WORLD_SIZE, else the least that the layout needs; of several only rank 0
    prints. Data and tokenizer files may be missing when --vocab-size is given. Raises ValueError for a configuration
    that could not run.
    """
    config = resolved.config
    known = os.environ.get("WORLD_SIZE")
    validate(config, None if known is None else int(known))
    choices = choose_libraries(config, installed())
    check_choices(choices)
    vocab_size = vocabulary_size(config)
    world_size = replica_size(config) if known is None else int(known)
    check_step_fits(config, vocab_size, world_size)
    if os.environ.get("RANK", "0") != "0":
        return 0
    if console is None:
        console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
    console.print(options_table(resolved))
    console.print(layers_table(config))
    console.print(parameters_table(config, vocab_size))
    console.print(memory_table(config, vocab_size, world_size))
    for line in ("", "Libraries", *describe(choices)):
        console.print(line, markup=False)
    for line in (*summary(config, vocab_size, world_size, known is not None), *resolved.notices):
        console.print(line, markup=False)
    return 0


def vocabulary_size(config: PretrainConfig) -> int:
    """Pieces of the tokenizer: of the file where it is there, else --vocab-size.

    Raises ValueError when neither is given or the two differ.
    """
    data = config.data
    missing = data.tokenizer_model is None or not Path(data.tokenizer_model).exists()
    needs_file = data.tokenizer_type not in TOKENIZERS_WITHOUT_FILE
    if not needs_file or not (missing and data.vocab_size is not None):
        if data.tokenizer_model is None and needs_file:
            raise ValueError("--dry-run needs the size of the vocabulary: give --tokenizer-model or --vocab-size")
        return build_tokenizer(data).vocab_size
    assert data.vocab_size is not None
    return data.vocab_size


def options_table(resolved: Resolved) -> Table:
    """Options by group with value and origin; defaults only with --dry-run-all."""
    config = resolved.config
    everything = config.training.dry_run_all
    hidden = 0
    table = Table(title="Configuration", title_justify="left", box=None, pad_edge=False)
    for heading in ("option", "value", "origin"):
        table.add_column(heading, overflow="fold")
    for group, _, options in option_groups():
        rows = [option for option in options if everything or resolved.value_sources[option.flag] != DEFAULT]
        hidden += len(options) - len(rows)
        if rows:
            table.add_row(f"[bold]{group}[/bold]")
        for option in rows:
            value = getattr(getattr(config, group), option.field_name)
            table.add_row(f"  {option.flag}", _plain(option.format(value)), _plain(resolved.value_sources[option.flag]))
    if hidden:
        table.caption = (
            f"{count_things(hidden, 'more option has its', 'more options have their')} default; --dry-run-all shows all"
        )
        table.caption_justify = "left"
    return table


def layers_table(config: PretrainConfig) -> Table:
    """The parts of every layer; equal consecutive layers share a row."""
    table = Table(title="\nLayer plan", title_justify="left", box=None, pad_edge=False)
    mixers = [kind.label for kind in kinds_in_use(config) if kind.role is Role.MIXER]
    mixer = mixers[0] if len(mixers) == 1 else "token mixer"
    headings = ["layer", "stage", f"memory before {mixer}", f"{mixer} sees"]
    mlps = [kind for kind in kinds_in_use(config) if kind.role is Role.MLP]
    if len(mlps) > 1 or mlps[0].reach(config, 1):
        headings.append("MLP")
    for heading in headings:
        table.add_column(heading)
    for (stage, *parts), group in groupby(_layers(config, len(mixers) > 1), key=lambda row: row[1:]):
        numbers = [row[0] for row in group]
        span = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        table.add_row(*[span, str(stage), *parts][: len(headings)])
    return table


def _layers(config: PretrainConfig, named: bool) -> Iterator[tuple[int, int, str, str, str]]:
    """(number, stage, memory, reach of the token mixer, MLP) of every layer; `named`: the reach begins with a name."""
    plan = layer_plan(config)
    for stage in range(config.parallel.pipeline_model_parallel_size):
        for number in stage_layers(config, stage):
            parts = plan[number - 1]
            memory = "-" if parts.memory is None else LAYER_KINDS[parts.memory].reach(config, number)
            reach = LAYER_KINDS[parts.mixer].reach(config, number)
            mlp = LAYER_KINDS[parts.mlp].reach(config, number) or parts.mlp
            yield number, stage, memory, f"{parts.mixer}: {reach}" if named else reach, mlp


def parameters_table(config: PretrainConfig, vocab_size: int) -> Table:
    """Slow weights by part, and separately the fast weights, which no optimizer updates."""
    tensor, context = config.parallel.tensor_model_parallel_size, config.parallel.context_parallel_size
    parts = parameters_by_part(config, vocab_size)
    table = Table(title="\nParameters", title_justify="left", box=None, pad_edge=False)
    table.add_column("part")
    for heading in ("whole model", "per tensor-parallel rank"):
        table.add_column(heading, justify="right")

    def add(name: str, parameters: ShardedCount, style: str | None = None) -> None:
        """Add a row of parameters to the table."""
        table.add_row(name, f"{parameters.total:,}", f"{parameters.on_rank(tensor):,}", style=style)

    for name, part in parts.items():
        if part.total:
            add(name, part)
    add("slow weights", sum(parts.values(), ShardedCount()), "bold")
    memories = memories_of(config, memory_numbers(config))
    if memories:
        table.add_row(
            f"fast weights ({count_things(len(memories), 'memory', 'memories')})",
            *(f"{sum(memory.elements(config, ranks) for memory in memories):,}" for ranks in (1, tensor * context)),
        )
    return table


def memory_table(config: PretrainConfig, vocab_size: int, world_size: int) -> Table:
    """Bytes on a rank of every pipeline stage; if there are many, only of the first, the largest and the last."""
    stages: Sequence[int] = range(config.parallel.pipeline_model_parallel_size)
    found = [estimate_memory(config, vocab_size, world_size, stage) for stage in stages]
    if len(stages) > _MOST_STAGES:
        fullest = max(stages, key=lambda stage: found[stage].total)
        stages = sorted({0, fullest, stages[-1]})
        found = [found[stage] for stage in stages]
    table = Table(title="\nMemory per rank", title_justify="left", box=None, pad_edge=False)
    table.add_column("part")
    for stage in stages:
        table.add_column(f"stage {stage}" if len(stages) > 1 else "size", justify="right")
    precision = "bf16" if config.training.bf16 else "fp32"
    stage_of_zero = sharding_stage(config)
    states, gradients, weights = (", sharded over replicas" * (stage_of_zero >= least) for least in (1, 2, 3))
    rows = {
        f"weights ({precision}{weights})": [one.weights for one in found],
        f"gradients ({'bf16' if config.parallel.grad_reduce_in_bf16 else 'fp32'}{gradients})": [
            one.gradients for one in found
        ],
        f"optimizer states (fp32{states})": [one.optimizer for one in found],
        "fast-weight tables (fp32)": [one.tables for one in found],
        "undo log and reset journal (upper bound)": [one.undo_log for one in found],
        "activations (estimate)": [one.activations for one in found],
        "temporaries of the fullest moment (estimate)": [one.temporaries for one in found],
    }
    if any(one.graphs for one in found):
        rows["CUDA graphs of the memories, beyond these (estimate)"] = [one.graphs for one in found]
    for name, values in rows.items():
        table.add_row(name, *(format_bytes(value) for value in values))
    table.add_row("total (estimate)", *(format_bytes(one.total) for one in found), style="bold")
    process = f"with the process, when trained on a CPU ({format_bytes(PROCESS_BYTES)})"
    table.add_row(process, *(format_bytes(one.resident) for one in found))
    if config.training.cpu_offloading_num_layers:
        table.add_row("host memory (estimate)", *(format_bytes(one.offloaded) for one in found))
    return table


def summary(config: PretrainConfig, vocab_size: int, world_size: int, world_known: bool) -> Iterator[str]:
    """The closing lines: layout, batch, vocabulary, memories, and what is missing for training."""
    parallel, model, training, data = config.parallel, config.model, config.training, config.data
    tensor, replicas = parallel.tensor_model_parallel_size, data_parallel_size(config, world_size)
    batch = global_batch_size(config, replicas)
    tokens = batch * model.seq_length
    in_all = samples_ahead(training, batch, 0, training.train_iters) * model.seq_length
    yield ""
    yield (
        f"Layout: {count_things(world_size, 'process', 'processes')} = TP {tensor} x "
        f"PP {parallel.pipeline_model_parallel_size} x "
        + (f"CP {parallel.context_parallel_size} x " if parallel.context_parallel_size > 1 else "")
        + f"DP {replicas}"
        + ("" if world_known else "  (the minimum; set WORLD_SIZE=N for N processes)")
    )
    yield (
        f"Step: {batch} sequences x {model.seq_length} tokens = {tokens:,} tokens in "
        f"{count_things(micro_batches(config, replicas), 'micro-batch', 'micro-batches')} per replica; "
        f"{training.train_iters:,} steps = {in_all:,} tokens"
    )
    if training.rampup_batch_size:
        start, increment, samples = training.rampup_batch_size
        yield f"Batch size ramp-up: from {start} to {batch} in steps of {increment}, over {samples:,} sequences"
    yield flops_line(config, vocab_size, tokens)
    padded = embedding_rows(config, vocab_size)
    yield f"Vocabulary size: {vocab_size}, padded to {padded}"
    for memory in memory_kinds(config):
        yield from _about_memories(config, memory)
    if config.checkpoint.save is not None:
        yield from checkpoint_lines(config, vocab_size, world_size)
    for flag, paths in (("--data-path", data.data_path), ("--train-data-path", data.train_data_path)):
        for prefix in paths[1::2] if len(paths) > 1 else paths:
            if not Path(f"{prefix}.idx").is_file():
                yield f"Missing for training: {prefix}.idx ({flag}); create it with tools/preprocess_data.py"
    if not data.data_path and not data.train_data_path:
        yield "Missing for training: --data-path; create a dataset with tools/preprocess_data.py"
    needs_file = data.tokenizer_type not in TOKENIZERS_WITHOUT_FILE
    if needs_file and (not data.tokenizer_model or not Path(data.tokenizer_model).exists()):
        yield f"Missing for training: --tokenizer-model {data.tokenizer_model or ''}".rstrip()


def flops_line(config: PretrainConfig, vocab_size: int, tokens: int) -> str:
    """The operations of a token in a step, and of a step of `tokens`, with the share of every part."""
    parts = forward_flops_by_part(config, vocab_size)
    shares = ", ".join(f"{name} {part / sum(parts.values()):.0%}" for name, part in parts.items())
    one = PASSES * sum(parts.values())
    return (
        f"FLOPs: {_flops(one)} per token ({PASSES} x forward, 2 per multiply-add), {_flops(one * tokens)} per step: "
        f"{shares}"
    )


def _flops(number: float) -> str:
    """`1.23 GFLOP`."""
    unit = min(max(int(math.log10(number)) // 3, 2), 5)
    return f"{number / 1000**unit:.3g} {'MGTP'[unit - 2]}FLOP"


def _about_memories(config: PretrainConfig, memory: MemoryKind) -> Iterator[str]:
    """The size of one memory of a kind and when it is written."""
    fast, options = memory.fast, memory.options
    slow_weights = kind_parameters(config, memory.kind).total
    yield (
        f"One memory: {format_bytes(fast.bytes(config, 1))} of fast weights and {slow_weights:,} slow weights; every "
        f"replica has its own fast weights ({fast.prefix}reset {options.reset})"
    )
    if options.owner == "sequence":
        yield f"Every sequence starts from the initial memory, and its writes end with it ({fast.prefix}owner sequence)"
    yield from notes_on_writing(config, memory)
    if options.reset == "document":
        one = format_bytes(fast.document_bytes(config))
        yield f"Undo log: up to {one} more per memory for every document start inside a sequence, which splits a chunk"


def checkpoint_lines(config: PretrainConfig, vocab_size: int, world_size: int) -> Iterator[str]:
    """The size of one checkpoint on disk and of all that are kept at once, and how long saving takes at least."""
    one, count = checkpoint_bytes(config, vocab_size, world_size), checkpoints_on_disk(config)
    parts = f"{format_bytes(one.weights)} of slow weights + {format_bytes(one.optimizer)} of optimizer states"
    if memory_numbers(config):
        replicas = data_parallel_size(config, world_size)
        saved = f"{one.replicas:,} of " * (one.replicas < replicas) + count_things(replicas, "replica")
        parts += f" + {format_bytes(one.fast_weights)} of fast weights ({saved}"
        parts += ")" if one.replicas == 1 else f", {format_bytes(one.fast_weights // one.replicas)} each)"
    yield (
        f"Checkpoint: {format_bytes(one.total)} = {parts}, up to {format_bytes(one.largest_rank)} written by one rank; "
        f"at most {count_things(count, 'checkpoint')} in --save, {format_bytes(count * one.total)}"
    )
    rank, disk = (size / 2**30 for size in (one.largest_rank, one.total))
    yield (
        f"Saving takes {_seconds(rank)} if that rank writes 1 GiB/s, and {_seconds(disk)} if the storage takes 1 GiB/s "
        "in all; at R GiB/s divide by R, and the longer of the two counts"
    )


def _seconds(value: float) -> str:
    """`0.3 s`, `771 s`."""
    return f"{value:.1f} s" if value < 10 else f"{value:,.0f} s"


def _plain(text: str) -> str:
    """Text in which rich sees no markup."""
    return text.replace("[", r"\[")
