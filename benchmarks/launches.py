"""What the memory would have a GPU do, counted without one: launches, host waits and bytes, of the op and of a layer.

The report is also the record that a test compares (`--check`): more than recorded is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.kernel_traffic import evenly_read, moved_bytes
from benchmarks.report import RESULTS, Goal, Report, add_output_argument, provenance
from benchmarks.shapes import PAPER

CHUNKS = 8
RECORD = RESULTS / "launches.json"
FIGURES = ("kernels", "operators", "collectives", "waits", "bytes", "kernel_bytes")
"""What is recorded of every subject and phase; none may grow."""
SLACK = {"bytes": 1.01, "kernel_bytes": 1.01}
"""By which factor a figure may grow all the same: bookkeeping of a few bytes is no news."""

RENEW = "python -m benchmarks.run launches"
GOALS = {"forward": 9, "backward": 6, "outside": 25, "layer": 200, "glue": 3e9}
"""Launches per chunk in either direction, outside chunks, of a layer; bytes outside the op."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--check", action="store_true", help="compare with the record and write nothing")
    parser.add_argument("--quick", action="store_true", help="leave out what takes longest to count")
    parser.add_argument("--record", type=Path, default=RECORD, help="what --check compares with")
    parser.add_argument("--implementations", nargs="+", choices=["triton", "sparse"], help="default: all there are")
    parser.add_argument("--repeats", type=int, default=60, help="timed calls of the host's time (default: 60)")
    add_output_argument(parser)


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Count as the parsed arguments say.

    Raises:
        RuntimeError: with `--check`, a figure is higher than recorded.
    """
    implementations = arguments.implementations or ["triton", "sparse"]
    if "triton" in implementations and find_spec("triton") is None:
        print("triton is not installed: its kernels are not counted", file=sys.stderr)
        implementations = [one for one in implementations if one != "triton"]
    found = count_all(implementations, quick=arguments.quick)
    if arguments.check:
        _check(json.loads(arguments.record.read_text())["data"], found)
    else:
        found["host"] = _host_times(implementations, arguments.repeats, found["subjects"])
    return _report(found, command)


def _host_times(implementations: list[str], repeats: int, subjects: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Milliseconds of the host, by the subject's name.

    Raises:
        RuntimeError: Triton's driver saw other launches than were counted.
    """
    from benchmarks.host_time import measure

    found = {}
    for implementation in implementations:
        for what in ("op", "layer"):
            name = f"{what} {implementation} {'bf16 reset=never ' if what == 'layer' else ''}TP1"
            times = measure(what, implementation, repeats)
            counted = sum(phase["kernels"] for phase in subjects[name].values())
            if times["kernels"] != counted:
                raise RuntimeError(
                    f"{name} launches {times['kernels']} kernels, of which benchmarks/counting.py sees {counted}"
                )
            found[name] = times
    return found


def count_all(implementations: list[str], *, quick: bool = False) -> dict[str, Any]:
    """Count all subjects.

    Args:
        implementations: which of `triton` and `sparse`.
        quick: only those that take no time: with `sparse` and with a reset at documents, one of each.

    Returns:
        Subject -> phase -> figure -> number, and what they depend on.
    """
    import torch

    from benchmarks.counted_calls import count, paper_shape, subjects
    from megatron_fwpkm.distributed.startup import silence_known_warnings
    from megatron_fwpkm.libraries.probes import installed

    silence_known_warnings()
    installed()  # hides from Megatron what is only half installed
    wanted = subjects(implementations)
    if quick:
        wanted = [one for one in wanted if one.is_quick]
    result = {}
    for subject in wanted:
        phases = count(subject, paper_shape(CHUNKS))
        longer = {} if quick else count(subject, paper_shape(CHUNKS + 1))
        with_bytes = subject.what == "layer" or subject.implementation == "triton"
        result[subject.name] = {
            phase: _figures(one, with_bytes) | ({"per_chunk": longer[phase].launches - one.launches} if longer else {})
            for phase, one in phases.items()
        }
    return {"torch": torch.__version__, "subjects": result}


def _figures(counted: Any, with_bytes: bool) -> dict[str, Any]:
    """What is recorded of one phase, and the kernels by name."""
    launched = counted.arguments
    return {
        "kernels": sum(counted.kernels.values()),
        "operators": sum(counted.operators.values()),
        "collectives": sum(counted.collectives.values()),
        "waits": sum(counted.waits.values()),
        "bytes": sum(counted.bytes.values()) if with_bytes else 0,
        "kernel_bytes": round(sum(moved_bytes(evenly_read(one, PAPER.num_subkeys**2, CHUNKS)) for one in launched)),
        "by_kernel": dict(sorted(counted.kernels.items())),
        "by_wait": dict(sorted(counted.waits.items())),
    }


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is more than recorded, and what is less, a line each.

    Torch's operators and their bytes are compared only where torch is the one that was recorded: another decomposes
    its functions in another way. What `sparse` launches depends on data, which is not there: it is shown only.
    """
    same = recorded["torch"].partition("+")[0] == found["torch"].partition("+")[0]
    compared = FIGURES if same else ("kernels", "collectives", "waits", "kernel_bytes")
    more, less = [], []
    for name, phases in found["subjects"].items():
        if " sparse " in name:
            continue
        if name not in recorded["subjects"]:
            more.append(f"{name} is not recorded")
            continue
        for phase, figures in phases.items():
            before = recorded["subjects"][name].get(phase, dict.fromkeys(FIGURES, 0))
            for figure in compared:
                line = f"{name}, {phase}: {figure} {before[figure]:,} -> {figures[figure]:,}"
                more += [line] if figures[figure] > before[figure] * SLACK.get(figure, 1) else []
                less += [line] if figures[figure] * SLACK.get(figure, 1) < before[figure] else []
    return more, less


def _check(recorded: dict[str, Any], found: dict[str, Any]) -> None:
    more, less = differences(recorded, found)
    if recorded["torch"] != found["torch"]:
        print(f"recorded with torch {recorded['torch']}, compared is {found['torch']}", file=sys.stderr)
    for line in less:
        print(f"less than recorded: {line}", file=sys.stderr)
    if less:
        print(f"{len(less)} figures are lower than recorded; record them: {RENEW}", file=sys.stderr)
    if more:
        lines = "\n".join(f"more than recorded: {line}" for line in more)
        raise RuntimeError(f"{len(more)} figures are higher than recorded\n{lines}\nif this is meant: {RENEW}")


def _report(found: dict[str, Any], command: str) -> Report:
    rows, host = [], found.get("host", {})
    for name, phases in found["subjects"].items():
        for phase, one in phases.items():
            launches = one["kernels"] + one["operators"]
            per_chunk = one.get("per_chunk")
            outside = "" if per_chunk is None else str(launches - CHUNKS * per_chunk)
            rows.append([
                name, phase, str(launches), str(one["kernels"]), str(one["operators"]),
                "" if per_chunk is None else str(per_chunk), outside, str(one["collectives"]), str(one["waits"]),
                f"{one['bytes'] / 1e9:.2f}" if one["bytes"] else "",
                f"{one['kernel_bytes'] / 1e9:.2f}" if one["kernel_bytes"] else "",
                f"{host[name][phase]:.2f}" if name in host else "",
            ])  # fmt: skip
    notes = [
        f"Counted at the paper's shape, 8 sequences of {CHUNKS} chunks of 512 tokens, on tensors without data, which "
        "say that they are on CUDA: nothing is run, and no GPU was used (benchmarks/counting.py). Launches are those "
        "of our Triton kernels and of torch's operators, each of which counts as one (a sort launches more). A chunk's "
        f"are the difference to {CHUNKS + 1} chunks. A wait is an operator whose result the host needs. TP2 is one of "
        "two ranks.",
        "GB are what torch's operators move, each tensor in or out once, matrix products apart: of an op all, of a "
        "layer those outside the op, and there those of our kernels, too. Of `sparse`, whose sizes depend on data, the "
        "bytes within the op are not known. Rows that a mask picks are counted as if it picked all of them, so the "
        "launches and waits of `sparse` are those of a call in which every token is doubtful. What all kernels move is "
        "computed, for slots that are read evenly (benchmarks/kernel_traffic.py).",
        "The host's time is the shortest CPU time of one thread on tiny tensors, with a driver of Triton that launches "
        "nothing (benchmarks/host_time.py); it is shown, and never compared with the record.",
    ]
    counts = ["launches", "kernels", "operators", "a chunk", "outside", "collectives", "waits"]
    header = ["what", "phase", *counts, "GB", "kernels' GB", "host ms"]
    title = "Launches, waits and bytes without a GPU"
    goals = _goals(found["subjects"], host)
    return Report("launches", title, notes, header, rows, found, provenance(command), goals=goals)


def _goals(subjects: dict[str, Any], host: dict[str, Any]) -> list[Goal]:
    op, layer = subjects.get("op triton TP1"), subjects.get("layer triton bf16 reset=never TP1")
    if not op or not layer or "per_chunk" not in op["forward"]:
        return []
    goals, outside = [], 0
    for phase, one in op.items():
        outside += one["kernels"] + one["operators"] - CHUNKS * one["per_chunk"]
        goals.append(_goal(f"op, {phase}: launches a chunk", one["per_chunk"], GOALS[phase]))
    goals.append(_goal("op: launches outside chunks", outside, GOALS["outside"]))
    launches = sum(one["kernels"] + one["operators"] for one in layer.values())
    goals.append(_goal("layer: launches", launches, GOALS["layer"]))
    moved = sum(one["bytes"] for one in layer.values())
    goals.append(Goal("layer: bytes outside the op", f"{moved / 1e9:.2f} GB", "<= 3 GB", moved <= GOALS["glue"]))
    waits = sum(p["waits"] for name, phases in subjects.items() if "layer triton" in name for p in phases.values())
    goals.append(_goal("layers of any reset: host waits", waits, 0))
    if "op triton TP1" in host:
        spent = host["op triton TP1"]["forward"] + host["op triton TP1"]["backward"]
        goals.append(Goal("op: the host's time", f"{spent:.1f} ms", "<= 2.5 ms", spent <= 2.5))
    return goals


def _goal(what: str, measured: int, wanted: float) -> Goal:
    return Goal(what, str(measured), f"<= {wanted:g}", measured <= wanted)
