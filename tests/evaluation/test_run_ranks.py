"""The processes of torchrun share an evaluation: files as one process leaves them, also after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_fwpkm.distributed.launch_variables import Launch
from megatron_fwpkm.evaluation.item_runner import RunOptions, measure_items, open_log
from megatron_fwpkm.evaluation.run_ranks import RunRanks
from tests.distributed.test_rendezvous import free_port
from tests.evaluation.test_item_runner import LengthRecord, LengthSettings, make_measure
from tests.spawned_ranks import run_distributed

WORDS = [letter * count for count in range(1, 4) for letter in "abc"]
IDENTITY = {"scale": 1}


def measure_words(rank: int, size: int, port: int, folder: str, stop_at: str | None = None) -> list[int]:
    """The lengths, as a process of `size` measures them; `stop_at` is a word at which it fails."""
    launch = Launch(rank, size, rank, size, "127.0.0.1", port, store_in_agent=False)
    options = RunOptions(Path(folder), ranks=RunRanks(launch))
    log = open_log(options, IDENTITY, lambda values: LengthRecord(**values))
    measure = make_measure(LengthSettings())
    done: list[str] = []

    def counted(word: str) -> LengthRecord:
        if word == stop_at:
            raise OSError(f"killed after {len(done)}")
        done.append(word)
        return measure(word)

    try:
        records = measure_items(WORDS, log, counted, lambda _: "", make_worker=make_measure, arguments=())
    except OSError:
        return [-len(done)]
    except SystemExit as end:
        assert rank > 0 and end.code == 0
        return []
    assert rank == 0
    return [record.length for record in records]


def test_processes_of_torchrun_share_the_items_and_a_stopped_run_continues(tmp_path):
    stopped = run_distributed(measure_words, 1, free_port(), str(tmp_path), WORDS[2], timeout=60)
    assert stopped == [[-2]]
    (tmp_path / "samples.rank3.jsonl").write_text(
        json.dumps(IDENTITY) + "\n" + json.dumps({"key": WORDS[5], "length": 2}) + '\n{"key"'
    )  # what a process of a larger run left when it was killed
    found = run_distributed(measure_words, 2, free_port(), str(tmp_path), timeout=60)
    assert found == [[len(word) for word in WORDS], []]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert lines == [IDENTITY, *({"key": word, "length": len(word)} for word in WORDS)]


def test_a_part_of_another_evaluation_is_refused(tmp_path):
    (tmp_path / "samples.rank1.jsonl").write_text(json.dumps({"scale": 2}) + "\n")
    with pytest.raises(ValueError, match=r"samples.rank1.jsonl contains samples of a different evaluation"):
        open_log(RunOptions(tmp_path), IDENTITY, lambda values: LengthRecord(**values))
    open_log(RunOptions(tmp_path, overwrite=True), IDENTITY, lambda values: LengthRecord(**values))
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_processes_of_processes_are_refused(tmp_path):
    ranks = RunRanks(Launch(0, 2, 0, 2, "127.0.0.1", 1, store_in_agent=False))
    with pytest.raises(ValueError, match="torchrun has started 2 processes and --workers 3"):
        RunOptions(tmp_path, 3, ranks=ranks)
