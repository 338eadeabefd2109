"""The table of a cluster's faults, tried on network namespaces: `python -m tests.cluster.table` runs and prints it.

It takes some minutes and root. A test of this folder writes what it saw by `note`, when it is started from here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.test_pretrain import ROOT

VARIABLE = "FWPKM_CLUSTER_TABLE"
"""Names the file to which the tests add their rows."""
_HEAD = ("case", "nodes", "program", "seconds", "exit status", "message")


def note(
    case: str, nodes: int, program: str, seconds: float, statuses: Sequence[int], text: str, pattern: str = r"error: .*"
) -> None:
    """Add a row: what happened to which program, after how long it ended, and the first line that fits a pattern."""
    if (name := os.environ.get(VARIABLE)) is None:
        return
    found = re.search(pattern, text)
    assert found is not None, f"no line like {pattern!r} in {text!r}"
    said = re.sub(r"\S*/pytest-[^/ ]*/[^/ ]*/[^/ ]*/", "", " ".join(found[0].split()))  # the folder of the test
    row = (case, nodes, program, f"{seconds:.1f}", " ".join(map(str, statuses)), said)
    with open(name, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def main() -> int:
    """Run the tests and print a Markdown table; the exit status is that of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows")
        path.touch()
        command = [sys.executable, "-m", "pytest", "-q", "tests/cluster", *sys.argv[1:]]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, VARIABLE: str(path)}, stdout=sys.stderr)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in (_HEAD, ["---"] * len(_HEAD), *rows):
        print("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
