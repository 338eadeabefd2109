"""Ctrl-C reaches all processes of a terminal: workers leave it to their parent, while they start, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Every process that multiprocessing spawns is interrupted as soon as Python looks for site-packages.
AT_START = """
import signal, sys
if "--multiprocessing-fork" in sys.argv:
    signal.raise_signal(signal.SIGINT)
    open(WITNESS, "a").write("interrupted\\n")
"""
WORKERS = """
import functools
from megatron_fwpkm.evaluation.workers import run_in_processes
if __name__ == "__main__":
    print(sorted(run_in_processes(2, [-1, -2], functools.partial, (abs,))))
"""
QUEUES = """
from megatron_fwpkm.checkpoint.results_queue import new_results_queue
if __name__ == "__main__":
    queue = new_results_queue()
    queue.put(5)
    print(queue.get())
"""


STARTER = """
import subprocess, sys
from megatron_fwpkm.processes.parent import program_that_stops_with_parent
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], preexec_fn=program_that_stops_with_parent())
child.wait()
"""
STARTED = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("stopped", flush=True)))
print("started", flush=True)
signal.pause()
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with workers that are interrupted at their start; checks that there were some."""
    witness = folder / "witness"
    (folder / "sitecustomize.py").write_text(AT_START.replace("WITNESS", repr(str(witness))))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert witness.exists(), "no worker was interrupted"
    return done


def test_workers_of_preprocessing_leave_interruption_to_their_parent(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"{number} {number + 1}"}) + "\n" for number in range(50)))
    prefix = tmp_path / "numbers"
    tokenizer = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "100", "--append-eod"]
    words = ["--input", str(corpus), "--output-prefix", str(prefix), "--workers", "2", *tokenizer]
    done = run(tmp_path, "tools/preprocess_data.py", *words)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "numbers_text_document.bin").stat().st_size == 50 * 3 * 2


@pytest.mark.parametrize(
    ("program", "printed"), [pytest.param(WORKERS, "[1, 2]\n", marks=pytest.mark.slow), (QUEUES, "5\n")]
)
def test_other_workers_leave_interruption_to_their_parent(tmp_path: Path, program: str, printed: str) -> None:
    (tmp_path / "program.py").write_text(program)
    done = run(tmp_path, str(tmp_path / "program.py"))
    assert done.stdout == printed
    assert "KeyboardInterrupt" not in done.stderr


def test_a_program_is_stopped_when_the_one_that_started_it_is_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STARTER, STARTED]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None and starter.stdout.readline() == "started\n"
        starter.kill()
        assert starter.communicate(timeout=60)[0] == "stopped\n"
