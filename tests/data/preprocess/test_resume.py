"""Kill at any moment, run again, same bytes; shards, verification, control tokens and BOS in whole runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from megatron_fwpkm.data.corpus import input_files as corpus
from megatron_fwpkm.data.indexed.merge_and_split import merge
from megatron_fwpkm.data.preprocess import journal
from megatron_fwpkm.data.preprocess import run as preprocess
from megatron_fwpkm.data.preprocess.run import PreprocessReport
from megatron_fwpkm.data.tokenizers import SentencePieceTokenizer, Tokenizer
from tests.quick_cases import examples

from ..conftest import ROOT, novel
from .test_preprocess import documents_of, jsonl, run


class Killed(BaseException):
    """What no handler of ours expects."""


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("out*"))}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = jsonl(tmp_path / "a.jsonl", [part for part in novel(12_000).split("\n\n") if part.strip()])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:7], b"{bad\n", *lines[7:20], b"\n", *lines[20:]]))
    return path


TAKE = preprocess._Run._take


def stopping_after(blocks: int) -> Any:
    """A `_take` that ends the run, leaving bytes behind the last checkpoint."""
    left = [blocks]

    def take(self: Any, block: Any) -> None:
        TAKE(self, block)
        left[0] -= 1
        if left[0] == 0:
            with open(self.writers[0]._partials[0], "ab") as torn:
                torn.write(b"torn")
            raise Killed

    return take


def dying_at(number: int) -> Any:
    """An os.replace that ends the run at a publishing rename."""
    count, rename = [number], os.replace

    def replace(old: Any, new: Any) -> None:
        count[0] -= "journal" not in str(new)
        if count[0] == 0 and "journal" not in str(new):
            raise Killed
        rename(old, new)

    return replace


@examples(6, 25, HealthCheck.function_scoped_fixture)
@given(stops=st.lists(st.integers(1, 30), min_size=1, max_size=3), publish=st.integers(0, 5))
def test_a_run_cut_off_anywhere_gives_the_same_bytes(
    tmp_path: Path, tokenizer_file: Path, source: Path, stops: list[int], publish: int
) -> None:
    options: dict[str, Any] = {"on_error": "quarantine", "append_eod": True, "verify": 3}
    folder = tmp_path / "cut"
    for path in folder.glob("out*"):
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK_BYTES", 500)
        if not (tmp_path / "whole").exists():
            run(tmp_path / "whole", tokenizer_file, source, **options)
        patch.setattr(journal, "CHECKPOINT_SECONDS", 0.0)
        for stop in stops:
            with patch.context() as inner, suppress(Killed):
                inner.setattr(preprocess._Run, "_take", stopping_after(stop))
                run(folder, tokenizer_file, source, resume=True, **options)
        with patch.context() as inner, suppress(Killed):
            inner.setattr(os, "replace", dying_at(publish))
            run(folder, tokenizer_file, source, resume=True, **options)
        run(folder, tokenizer_file, source, resume=True, **options)
        assert outputs(folder) == outputs(tmp_path / "whole")
        again = run(folder, tokenizer_file, source, resume=True, **options)
        assert again.finished_before and again.skipped == {"bad JSON": 1, "blank line": 1}
        with pytest.raises(ValueError, match="already exists"):
            run(folder, tokenizer_file, source, **options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_nine_and_resume(tmp_path: Path, tokenizer_file: Path, workers: int) -> None:
    source = jsonl(tmp_path / "a.jsonl", [f"{i} some words that take a while" for i in range(60_000)])
    run(tmp_path / "whole", tokenizer_file, source, append_eod=True)
    code = (
        "import sys\n"
        "from megatron_fwpkm.config import DataConfig\n"
        "from megatron_fwpkm.data.corpus import input_files\n"
        "from megatron_fwpkm.data.preprocess import journal\n"
        "from megatron_fwpkm.data.preprocess.run import *\n"
        "journal.CHECKPOINT_SECONDS, input_files.BLOCK_BYTES = 0.0, 20_000\n"
        "if __name__ == '__main__':\n"
        f"    data = DataConfig(tokenizer_model={str(tokenizer_file)!r})\n"
        f"    preprocess(PreprocessOptions(({str(source)!r},), {str(tmp_path / 'cut' / 'out')!r}, data,\n"
        f"        append_eod=True, workers={workers}, resume=True))\n"
    )
    (tmp_path / "script.py").write_text(code)
    journal_file = tmp_path / "cut" / "out_journal.json"
    kills, last = 0, -1
    while kills < 3:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py")], env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        while process.poll() is None:
            state = json.loads(journal_file.read_text()) if journal_file.exists() else {}
            position = state.get("place", [0, -1])[1]
            if position > last:
                process.send_signal(signal.SIGKILL)
                process.wait()
                last = position  # the next one dies only behind this place, so each has gone on
            time.sleep(0.01)
        kills += 1
        if process.returncode == 0:
            break
    assert last > 0
    run(tmp_path / "cut", tokenizer_file, source, append_eod=True, resume=True)
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "whole")


def interrupted(folder: Path, tokenizer_file: Path, source: Path, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(corpus, "BLOCK_BYTES", 500)
        checkpoint = preprocess._Run._checkpoint

        def dying(self: Any, block: Any) -> None:
            checkpoint(self, block)
            raise Killed

        patch.setattr(preprocess._Run, "_checkpoint", dying)
        with pytest.raises(Killed):
            run(folder, tokenizer_file, source, **options)


def test_resume_refuses_another_run_and_changed_inputs(tmp_path: Path, tokenizer_file: Path, source: Path) -> None:
    interrupted(tmp_path, tokenizer_file, source, on_error="skip")
    with pytest.raises(ValueError, match="belongs to a run with different options, inputs or tokenizer; repeat"):
        run(tmp_path, tokenizer_file, source, on_error="skip", append_eod=True, resume=True)
    os.utime(source, (1, 1))
    with pytest.raises(ValueError, match=r"a\.jsonl has changed since the interrupted run; start over with"):
        run(tmp_path, tokenizer_file, source, on_error="skip", resume=True)
    with pytest.raises(ValueError, match=r"out_journal\.json belongs to an interrupted run: --resume continues"):
        run(tmp_path, tokenizer_file, source, on_error="skip")
    interrupted(tmp_path, tokenizer_file, source, on_error="skip", overwrite=True)
    os.truncate(tmp_path / "out_text_document.bin.partial", 1)
    with pytest.raises(ValueError, match="the interrupted run's output is incomplete"):
        run(tmp_path, tokenizer_file, source, on_error="skip", resume=True)
    (tmp_path / "out_journal.json").write_text("{")
    with pytest.raises(ValueError, match="is not a journal of this tool"):
        run(tmp_path, tokenizer_file, source, on_error="skip", resume=True)
    run(tmp_path, tokenizer_file, source, on_error="skip", overwrite=True)  # starts over
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.jsonl", *(f"out_text_document.{suffix}" for suffix in ("bin", "idx", "json"))
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["vanish", "touch"])
def test_an_input_that_changes_is_an_error(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["x"] * 10)
    take = preprocess._Run._take

    def changing(self: Any, block: Any) -> None:
        take(self, block)
        source.unlink() if change == "vanish" else os.utime(source, (1, 1))

    monkeypatch.setattr(preprocess._Run, "_take", changing)
    with pytest.raises(ValueError, match="deleted during the run" if change == "vanish" else "a.jsonl changed during"):
        run(tmp_path, tokenizer_file, source)
    assert not list(tmp_path.glob("out*"))


def test_shards_merge_to_the_whole(tmp_path: Path, tokenizer_file: Path, source: Path) -> None:
    other = jsonl(tmp_path / "b.jsonl", ["another file"] * 9)
    options: dict[str, Any] = {"append_eod": True, "on_error": "skip"}
    whole = run(tmp_path, tokenizer_file, source, other, **options)
    reports: list[PreprocessReport] = [
        run(tmp_path, tokenizer_file, source, other, shard_id=i, num_shards=3, **options) for i in range(3)
    ]
    assert reports[1].prefixes == [str(tmp_path / "out-00001-of-00003_text_document")]
    told = [line for report in reports for line in report.bad_records]
    assert told == whole.bad_records, "with the same line numbers"
    merge([f"{tmp_path}/out-*-of-00003_text_document"], str(tmp_path / "merged"))
    parts = [report.prefixes[0] for report in reports]
    for wrong, missing in ((parts[:2], ": missing: 2;"), (parts[2:], ": missing: 0, 1;"), (parts[::-1], "$")):
        told_so = rf"is shard \d of 3 \(--num-shards\), but --input does not .* and in order{missing}"
        with pytest.raises(ValueError, match=told_so):
            merge(wrong, str(tmp_path / "incomplete"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"merged{suffix}").read_bytes() == Path(whole.prefixes[0] + suffix).read_bytes()
    with pytest.raises(ValueError, match="--shard-id 3 must be at least 0 and less than --num-shards 3"):
        run(tmp_path, tokenizer_file, source, shard_id=3, num_shards=3)


def test_control_tokens_and_bos(tmp_path: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["a </s> b", "plain"])
    found = {}
    for choice in ("text", "parse", "fail"):
        run(tmp_path, tokenizer_file, source, control_tokens=choice, overwrite=True, on_error="skip", verify=2)
        found[choice] = documents_of(str(tmp_path / "out_text_document"))
    assert found["text"] == [tokenizer.encode("a </s> b"), tokenizer.encode("plain")]
    assert found["parse"][0] == [*tokenizer.encode("a "), tokenizer.eod, *tokenizer.encode(" b")]
    assert found["fail"] == [tokenizer.encode("plain")]
    with pytest.raises(ValueError, match=r"a\.jsonl:1: control token \(</s> at character 2\)"):
        run(tmp_path, tokenizer_file, source, control_tokens="fail", overwrite=True)
    run(tmp_path, tokenizer_file, source, prepend_bos=True, append_eod=True, overwrite=True, verify=2)
    expected = [tokenizer.bos, *tokenizer.encode("plain"), tokenizer.eod]
    assert documents_of(str(tmp_path / "out_text_document"))[1] == expected
    from megatron_fwpkm.config import DataConfig

    numbers = DataConfig(tokenizer_type="NullTokenizer", vocab_size=9)
    with pytest.raises(ValueError, match="--prepend-bos: .* has no beginning-of-sequence token"):
        run(tmp_path, tokenizer_file, source, prepend_bos=True, data=numbers)
    with pytest.raises(ValueError, match="--verify -1 must be at least 0"):
        run(tmp_path, tokenizer_file, source, verify=-1)


def test_control_tokens_are_listed_once_and_not_for_every_document(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list takes a look at every piece of the tokenizer."""
    lists, control_tokens = list[int](), SentencePieceTokenizer.control_tokens

    def counted(self: SentencePieceTokenizer) -> dict[str, int]:
        lists.append(1)
        return control_tokens(self)

    monkeypatch.setattr(SentencePieceTokenizer, "control_tokens", counted)
    run(tmp_path, tokenizer_file, jsonl(tmp_path / "a.jsonl", ["a </s> b"] * 50), control_tokens="parse")
    assert len(lists) < 5


def test_keys_blended_into_one_dataset(tmp_path: Path, tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"t": "one", "b": "two"}\n{"t": "three", "b": "four"}\n')
    report = run(tmp_path, tokenizer_file, source, json_keys=("t", "b"), blend_keys=True)
    assert report.prefixes == [str(tmp_path / "out_t_b_document")] and report.documents == 4
    assert [tokenizer.decode(d) for d in documents_of(report.prefixes[0])] == ["one", "two", "three", "four"]


def test_a_fresh_start_forgets_the_quarantine_of_a_killed_run(
    tmp_path: Path, tokenizer_file: Path, source: Path
) -> None:
    (tmp_path / "out_quarantine.jsonl.partial").write_text('{"file": "of a run that was killed before its journal"}\n')
    run(tmp_path, tokenizer_file, source, on_error="quarantine")
    rows = [json.loads(line) for line in (tmp_path / "out_quarantine.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in rows] == [(8, "bad JSON"), (22, "blank line")]
