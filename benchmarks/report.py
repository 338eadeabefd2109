"""What a benchmark result must carry to mean anything, and how it is written down."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from."""

    command: str
    commit: str
    date: str
    python: str
    torch: str
    processor: str
    system: str


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
    """

    name: str
    title: str
    notes: list[str]
    header: list[str]
    rows: list[list[str]]
    data: dict[str, Any]
    provenance: Provenance

    def markdown(self) -> str:
        """The report as Markdown."""
        lines = [f"# {self.title}", ""]
        for note in self.notes:
            lines += [note, ""]
        lines += [_line(self.header), _line(["---"] * len(self.header)), *map(_line, self.rows), ""]
        lines += [f"- {key}: {value}" for key, value in asdict(self.provenance).items()]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write `<name>.json` and `<name>.md` into `folder`; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{self.name}.json", folder / f"{self.name}.md"]
        content = {"name": self.name, "provenance": asdict(self.provenance), "data": self.data}
        files[0].write_text(json.dumps(content, indent=1) + "\n")
        files[1].write_text(self.markdown())
        return files


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


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


def provenance(command: str) -> Provenance:
    """Collect the provenance of a result made now by `command`."""
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
    )
