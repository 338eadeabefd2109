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

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from megatron_fwpkm.config.cli import Parser, run_cli, tool_parser
from megatron_fwpkm.config.field_metadata import Above, AtLeast
from megatron_fwpkm.config.tool_options import Metavar, add_tool_options, parse_tool

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class MutateOptions:
    """What the tool is asked for; names as its flags."""

    room: Annotated[str, Metavar("NAME")]
    """folder of megatron_fwpkm"""
    count: Annotated[int, AtLeast(1)] = 20
    """number of mutants to draw"""
    seed: Annotated[int, AtLeast(0)] = 0
    """random seed of the draw"""
    tests: Annotated[tuple[str, ...], Metavar("PATH")] = ()
    """tests to run on each mutant (default: the tests of the room)"""
    marker: str = "not slow"
    """marker expression that selects among them, as pytest's -m"""
    time_limit: Annotated[float | None, Above(0), Metavar("S")] = None
    """seconds per mutant (default: three times the time of the unchanged tests, plus 60)"""
    output: Annotated[str | None, Metavar("FILE")] = None
    """JSON Lines file for the verdicts (default: runs/mutation/ROOM-SEED.jsonl)"""
    overwrite: bool = False
    """discard the verdicts in --output and measure again"""
    list: bool = False
    """print the drawn mutants and run no tests"""


def build_parser() -> Parser:
    """The tool's flags."""
    return add_tool_options(tool_parser(__doc__), MutateOptions)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per mutant to standard error, then the survivors."""
    args = parse_tool(build_parser(), MutateOptions, argv)
    sys.path.insert(0, str(ROOT))
    from tests.mutation.mutants import draw
    from tests.mutation.trial import Plan, measure, room_tests

    if args.list:
        print("\n".join(map(str, draw(ROOT, args.room, args.count, args.seed))))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does, end what runs and remove the copy
    tests = room_tests(args.room, args.tests)
    plan = Plan(ROOT, args.room, args.count, args.seed, tests, args.marker, args.time_limit)
    output = Path(args.output) if args.output else ROOT / "runs" / "mutation" / f"{args.room}-{args.seed}.jsonl"
    outcome = measure(plan, output, overwrite=args.overwrite, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(outcome.summary(), f"verdicts: {output}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
