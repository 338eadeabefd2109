"""Whatever happens to the files of an export, loading it ends in one clear line or in the right result.

Never in a crash, after a long time, or with more than twice the memory of the files.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import dynamic_module_utils

from tests.quick_cases import examples

from .damaged_loading import LAYOUTS, WAYS, damaged_copy, fault, outcome, serve, write_exports
from .export_damage import Damage, damages

pytestmark = pytest.mark.filterwarnings("ignore")
WHOLE_ANSWER_SECONDS = 100
"""All ways of loading, each with a limit of its own."""
layouts, several = st.sampled_from(LAYOUTS), st.lists(damages, min_size=1, max_size=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Exports of 28 kB, and a place for the code that Transformers copies and imports."""
    folder = tmp_path_factory.mktemp("fuzzed")
    write_exports(folder, 8, "5KB")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
        yield folder
    sys.path[:] = [path for path in sys.path if path != str(folder / "modules")]
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


KNOWN = [
    ("whole", Damage("cut", (0, 0, 0)), "tools"),
    ("whole", Damage("text", (0, 0, 0), "[" * 100_000), "tools"),
    ("whole", Damage("config field", (0, 0, 0), ("vocab_size", 10**10)), "ours"),
    ("whole", Damage("config field", (0, 0, 0), ("transformers_weights", "x.safetensors")), "tools"),
    ("shards", Damage("shard name", (0, 0, 0), "x" * 300), "ours"),
    ("shards", Damage("shard name", (0, 0, 0), None), "ours"),
]
"""Damages that ended otherwise once."""


@pytest.mark.parametrize("case", range(len(KNOWN)))
def test_damages_that_ended_otherwise_once(case: int, root: Path) -> None:
    layout, done, way = KNOWN[case]
    folder = damaged_copy(root, layout, [done])
    came = outcome(folder, way)
    assert isinstance(came, ValueError) and not fault(came, folder, way, root / layout)


@examples(12, 40, *HealthCheck)
@given(layout=layouts, done=several, way=st.sampled_from(sorted(WAYS)))
def test_damaged_exports_end_in_one_line_or_the_right_result(
    root: Path, layout: str, done: list[Damage], way: str
) -> None:
    folder = damaged_copy(root, layout, done)
    assert not fault(outcome(folder, way), folder, way, root / layout)


class Loader:
    """A process that loads damaged exports, and another one when it has ended."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.start()

    def start(self) -> None:
        """Start it, and wait until its first loads have taken what only first loads take."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.root), daemon=True)
        self.process.start()
        theirs.close()
        assert self.connection.poll(180) and self.connection.recv() == "ready"

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.join()

    def load(self, layout: str, done: list[Damage]) -> dict[str, tuple[str, int]]:
        """Fault and bytes above the base of every way."""
        self.connection.send((layout, done))
        try:
            assert self.connection.poll(WHOLE_ANSWER_SECONDS), f"no answer after {WHOLE_ANSWER_SECONDS} s"
            answer: dict[str, tuple[str, int]] = self.connection.recv()
            return answer
        except (EOFError, AssertionError) as error:
            self.end()
            code = self.process.exitcode
            self.start()
            raise AssertionError(f"the loading process ended with {code}: {error}") from None


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_damaged_exports(tmp_path: Path) -> None:
    """Each in a process that would take a crash with it, in every way, with the memory that it takes at most."""
    write_exports(tmp_path, 600, "4MB")
    size = (tmp_path / "whole" / "model.safetensors").stat().st_size
    loader, peaks = Loader(tmp_path), dict.fromkeys(WAYS, 0)

    @settings(max_examples=1000, suppress_health_check=list(HealthCheck))
    @given(layout=layouts, done=several)
    def loads(layout: str, done: list[Damage]) -> None:
        for way, (problem, peak) in loader.load(layout, done).items():
            assert not problem
            peaks[way] = max(peaks[way], peak)
            assert peak <= 2 * size, f"{way} took {peak:,} bytes for a file of {size:,}"

    try:
        loads()
    finally:
        loader.end()
    print({way: f"{peak / size:.2f} times the file" for way, peak in peaks.items()})
