r"""Mutation testing: measure how many small faults the tests of a room would miss. Example:

python tools/mutate.py --room data --count 20 --seed 0

draws 20 mutants of the sources in megatron_fwpkm/data: a comparison flipped, a constant changed, a condition negated,
a statement or an argument dropped, a sign or an operator swapped, None returned. Each is applied to a copy of the
project, and the tests of the room run there until one fails: the mutant is killed. Survivors are printed with their
location: either a test is missing, or the fault changes nothing that matters; a person has to judge. The working tree
is never touched. The same command continues where it stopped; a larger --count keeps the existing verdicts.
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
    add("--count", type=positive_int, default=20, metavar="N", help="number of mutants to draw (default: 20)")
    add("--seed", type=non_negative_int, default=0, metavar="N", help="random seed of the draw (default: 0)")
    add("--tests", nargs="+", metavar="PATH", help="tests to run on each mutant (default: the tests of the room)")
    add("--marker", default="not slow", metavar="TEXT", help="select among them, as pytest's -m (default: 'not slow')")
    add("--time-limit", type=positive_float, metavar="S",
        help="seconds per mutant (default: three times the time of the unchanged tests, plus 60)")  # fmt: skip
    add("--output", type=Path, metavar="FILE",
        help="JSON lines file for the verdicts (default: runs/mutation/ROOM-SEED.jsonl)")  # fmt: skip
    add("--overwrite", action="store_true", help="discard the verdicts in --output and measure again")
    add("--list", action="store_true", help="print the drawn mutants and run no tests")
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
