"""Run a benchmark: `python -m benchmarks.run memory`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import checkpoint, launches, memory, memory_estimate, model, preprocess, reading, roofline, stages
from benchmarks.report import Report, make_output_folder


@dataclass(frozen=True)
class Benchmark:
    """An entry of the registry."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, str], Report]


BENCHMARKS = {
    "memory": Benchmark(
        "the fast-weight memory alone, over sizes, every implementation", memory.add_arguments, memory.run
    ),
    "stages": Benchmark(
        "where one call of the memory spends its time, kernel by kernel", stages.add_arguments, stages.run
    ),
    "launches": Benchmark(
        "launches, host waits and bytes of the memory, counted without a GPU", launches.add_arguments, launches.run
    ),
    "roofline": Benchmark(
        "predicted times of kernels, layer and model on GPUs, each with its bound", roofline.add_arguments, roofline.run
    ),
    "layer": Benchmark("one memory layer, forward and backward", model.add_layer_arguments, model.run_layer),
    "model": Benchmark("a training step with memories and without", model.add_model_arguments, model.run_model),
    "reading": Benchmark(
        "an export that reads a long text on one core: time, touched rows, memory", reading.add_arguments, reading.run
    ),
    "checkpoint": Benchmark(
        "saving and loading large memories, with and without --async-save", checkpoint.add_arguments, checkpoint.run
    ),
    "memory_estimate": Benchmark(
        "the memory estimate of --dry-run against the peak of training on the CPU",
        memory_estimate.add_arguments,
        memory_estimate.run,
    ),
    "preprocess": Benchmark(
        "preparing a corpus: every --accelerator against SentencePiece alone", preprocess.add_arguments, preprocess.run
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it.

    Returns:
        The exit code; 1: a side failed or the sides disagree, 2: the report could not be written.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="BENCHMARK")
    for name, benchmark in BENCHMARKS.items():
        benchmark.add_arguments(commands.add_parser(name, help=benchmark.help))
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats} must be at least 1")
    writes = not getattr(arguments, "check", False)
    if writes and not make_output_folder(arguments.output):
        return 2
    try:
        report = BENCHMARKS[arguments.name].run(arguments, " ".join(["python -m benchmarks.run", *argv]))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.markdown())
    if not writes:
        return 0
    for path in report.write(arguments.output):
        print(f"wrote {path.name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
