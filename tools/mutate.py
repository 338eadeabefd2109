r"""Measure how many small faults the tests of a room would not notice. Example:

python tools/mutate.py --room data --count 20 --seed 0

draws 20 mutants from the sources in megatron_fwpkm/data: a comparison flipped, a constant changed, a condition negated,
a statement or an argument dropped, a sign or an operator swapped, None returned. Each is planted into a copy of the
project, in which the tests of the room run until one fails: the mutant is killed. What survives is printed with its
place: a test is missing there, or the fault changes nothing that matters, which a person has to judge. The working tree
is never touched; the same command goes on where it stopped, and a larger --count keeps the verdicts that are there.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_fwpkm.config.cli import non_negative_int, positive_float, positive_int, run_cli, tool_parser

ROOT = Path(__file__).resolve().parents[1]


def build_parser() -> argparse.ArgumentParser:
    """The tool's flags."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--room", required=True, metavar="NAME", help="folder of megatron_fwpkm")
    add("--count", type=positive_int, default=20, metavar="N", help="mutants to draw (default: 20)")
    add("--seed", type=non_negative_int, default=0, metavar="N", help="seed of the draw (default: 0)")
    add("--tests", nargs="+", metavar="PATH", help="what to run on each (default: the tests of the room)")
    add("--marker", default="not slow", metavar="TEXT", help="which of them, pytest's -m (default: 'not slow')")
    add("--time-limit", type=positive_float, metavar="S",
        help="seconds per mutant (default: three times what the tests take unchanged, and 60 more)")  # fmt: skip
    add("--output", type=Path, metavar="FILE",
        help="verdicts as JSON lines (default: runs/mutation/ROOM-SEED.jsonl)")  # fmt: skip
    add("--overwrite", action="store_true", help="measure anew what is already in --output")
    add("--list", action="store_true", help="print the mutants of the draw and run nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per mutant to standard error, then the survivors."""
    args = build_parser().parse_args(argv)
    sys.path.insert(0, str(ROOT))
    from tests.mutation.mutants import draw
    from tests.mutation.trial import Plan, measure, room_tests

    if args.list:
        print("\n".join(map(str, draw(ROOT, args.room, args.count, args.seed))))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does, end what runs and remove the copy
    tests = room_tests(args.room, args.tests)
    plan = Plan(ROOT, args.room, args.count, args.seed, tests, args.marker, args.time_limit)
    output = args.output or ROOT / "runs" / "mutation" / f"{args.room}-{args.seed}.jsonl"
    outcome = measure(plan, output, overwrite=args.overwrite, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(outcome.summary())
    print(f"verdicts: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
