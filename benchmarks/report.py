"""What a benchmark result must carry to mean anything, and how it is written down."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_fwpkm.config.plot_style import SERIES, STYLE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
VERDICTS = {True: "yes", False: "no", None: "not judged here"}


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from; `tests` were green before it was measured."""

    command: str
    commit: str
    date: str
    python: str
    torch: str
    processor: str
    system: str
    tests: str


@dataclass(frozen=True)
class Figure:
    """A row of dots for every label, a panel beside the other. On a logarithmic axis a bar's length would mean nothing.

    Attributes:
        labels: of the rows.
        panels: title -> series -> a value for every label; None leaves it out.
        unit: what the values are.
    """

    labels: list[str]
    panels: dict[str, dict[str, list[float | None]]]
    unit: str

    def write(self, file: Path) -> None:
        """Draw into a PNG file."""
        import matplotlib

        with matplotlib.rc_context(STYLE):
            self.draw().savefig(file, metadata={"Software": None})

    def draw(self) -> Any:
        """The picture, a matplotlib figure."""
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(5 * len(self.panels), 1.4 + 0.36 * len(self.labels)), layout="constrained")
        all_axes = canvas.subplots(1, len(self.panels), sharey=True, squeeze=False)[0]
        for axes, (title, series) in zip(all_axes, self.panels.items(), strict=True):
            for (name, values), colour in zip(series.items(), itertools.cycle(SERIES)):  # noqa: B905
                drawn = [(value, row) for row, value in enumerate(values) if value is not None]
                axes.scatter([v for v, _ in drawn], [row for _, row in drawn], s=34, color=colour, label=name, zorder=3)
                for value, row in drawn:
                    axes.annotate(digits(value), (value, row), (0, 6), textcoords="offset points", ha="center",
                                  fontsize=7, color=colour)  # fmt: skip
            axes.set(title=title, xlabel=self.unit, xscale="log")
            axes.grid(axis="y")
            axes.margins(x=0.12, y=0.09)
        all_axes[0].set_yticks(range(len(self.labels)), self.labels)
        all_axes[0].invert_yaxis()
        canvas.legend(*all_axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=5)
        return canvas


@dataclass(frozen=True)
class Goal:
    """What should be reached, and what was; `met` is None where this device or size is not the one it is meant for."""

    what: str
    measured: str
    wanted: str
    met: bool | None


@dataclass(frozen=True)
class Table:
    """A table below the report's own.

    Attributes:
        title: one line.
        notes: how to read it, one paragraph each.
        header: names of the columns.
        rows: of the table.
    """

    title: str
    notes: list[str]
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> list[str]:
        """Its lines."""
        lines = [f"## {self.title}", ""]
        for note in self.notes:
            lines += [note, ""]
        return [*lines, *table_lines(self.header, self.rows), ""]


@dataclass(frozen=True)
class Report:
    """One benchmark's result.

    Attributes:
        name: of the benchmark; also the stem of the files written.
        title: one line.
        notes: what was measured and how, one paragraph each.
        header: names of the table's columns.
        rows: the table.
        data: everything behind the table, for machines.
        provenance: where it comes from.
        figure: the table as a picture, or None.
        goals: what should be reached.
        tables: what else there is to see.
    """

    name: str
    title: str
    notes: list[str]
    header: list[str]
    rows: list[list[str]]
    data: dict[str, Any]
    provenance: Provenance
    figure: Figure | None = None
    goals: Sequence[Goal] = ()
    tables: Sequence[Table] = ()

    @property
    def picture(self) -> Figure | None:
        """The figure, where matplotlib can draw it: a machine with a GPU and no network may lack it."""
        return self.figure if importlib.util.find_spec("matplotlib") else None

    def markdown(self) -> str:
        """The report as Markdown."""
        lines = [f"# {self.title}", ""]
        for note in self.notes:
            lines += [note, ""]
        lines += [*table_lines(self.header, self.rows), ""]
        for table in self.tables:
            lines += table.markdown()
        if self.goals:
            goals = [[goal.what, goal.measured, goal.wanted, VERDICTS[goal.met]] for goal in self.goals]
            lines += ["## Goals", ""] if self.tables else []
            lines += [*table_lines(["goal", "measured", "wanted", "met"], goals), ""]
        if self.picture:
            lines += [f"![{self.title}]({self.name}.png)", ""]
        lines += [f"- {key}: {value}" for key, value in asdict(self.provenance).items()]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write `<name>.json`, `<name>.md` and, where there is a figure, `<name>.png`; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{self.name}.json", folder / f"{self.name}.md"]
        goals = [asdict(goal) for goal in self.goals]
        content = {"name": self.name, "provenance": asdict(self.provenance), "goals": goals, "data": self.data}
        files[0].write_text(json.dumps(content, indent=1) + "\n")
        files[1].write_text(self.markdown())
        if self.picture:
            files.append(folder / f"{self.name}.png")
            self.picture.write(files[-1])
        return files


def digits(value: float) -> str:
    """Three digits, and every one before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """`--output`, where the report goes."""
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder for the report's files (default: benchmarks/results)"
    )


def make_output_folder(folder: Path) -> bool:
    """Make the folder of a report before the work is done; where it cannot be written, says so and returns False."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        print(f"error: --output {folder} cannot be written: {error.strerror}; choose another folder", file=sys.stderr)
        return False


def table_lines(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def provenance(command: str, tests: str = "none: these are not the memory's numbers") -> Provenance:
    """Collect the provenance of a result made now by `command`, after `tests` passed."""
    import torch

    commit = _git("rev-parse", "--short=12", "HEAD") or "unknown"
    measured = _git("status", "--porcelain", "--", "megatron_fwpkm/ops", "benchmarks/*.py")
    return Provenance(
        command=command,
        commit=f"{commit} with uncommitted changes" if measured else commit,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        python=platform.python_version(),
        torch=str(torch.__version__),
        processor=_processor(),
        system=f"{platform.system()} {platform.machine()}",
        tests=tests,
    )
