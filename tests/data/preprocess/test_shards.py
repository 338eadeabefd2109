"""Parts of a corpus made apart and joined: the bytes of one run, and no part missing, foreign or half done."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.preprocess import run as preprocess
from megatron_fwpkm.data.preprocess.preprocess_options import PreprocessOptions
from megatron_fwpkm.data.preprocess.shards import merge_shards, shards_of

from ..conftest import novel
from .test_preprocess import jsonl


@pytest.fixture
def options(tmp_path: Path, tokenizer_file: Path) -> PreprocessOptions:
    """Two files with bad records, in three parts; two datasets."""
    texts = [part for part in novel(12_000).split("\n\n") if part.strip()]
    one = jsonl(tmp_path / "a.jsonl", texts[:30])
    one.write_bytes(b"{worse\n" + one.read_bytes() + b"{bad\n")
    other = jsonl(tmp_path / "b.jsonl", texts[30:])
    other.write_bytes(b"\n" + other.read_bytes())
    return PreprocessOptions(
        (str(one), str(other)), str(tmp_path / "out"), DataConfig(tokenizer_model=str(tokenizer_file)),
        json_keys=("text", "title|text"), append_eod=True, on_error="quarantine", num_shards=3,
    )  # fmt: skip


def files_of(options: PreprocessOptions) -> dict[str, bytes]:
    """The bytes of all that a run writes, but for the descriptions, by what follows the prefix."""
    paths = [Path(prefix + suffix) for prefix in options.prefixes for suffix in (".bin", ".idx")]
    return {path.name.removeprefix(Path(options.shard_prefix).name): path.read_bytes() for path in paths} | {
        "quarantine": options.quarantine_path.read_bytes()
    }


def make(options: PreprocessOptions, **changes: Any) -> None:
    for part in shards_of(replace(options, **changes)):
        preprocess.preprocess(part)


def test_joined_shards_are_one_run(options: PreprocessOptions, tmp_path: Path) -> None:
    alone = replace(options, num_shards=1, output_prefix=str(tmp_path / "alone"))
    preprocess.preprocess(alone)
    make(options)
    report = merge_shards(options)
    whole = replace(options, num_shards=1)
    assert files_of(whole) == files_of(alone) and files_of(whole)["quarantine"].count(b"\n") == 3
    assert [prefix for prefix, *_ in report.outputs] == whole.prefixes
    # Again: refused without a flag, nothing to do with --resume, and what was not joined yet is joined.
    with pytest.raises(ValueError, match="already exists"):
        merge_shards(options)
    os.remove(whole.prefixes[1] + ".idx")
    for suffix in (".bin", ".json"):
        os.remove(whole.prefixes[1] + suffix)
    before = os.stat(whole.prefixes[0] + ".bin").st_mtime_ns
    assert merge_shards(replace(options, resume=True)) == report
    assert os.stat(whole.prefixes[0] + ".bin").st_mtime_ns == before
    assert files_of(whole) == files_of(alone)


def test_a_missing_shard_is_named_and_made_alone(options: PreprocessOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    make(options)
    whole = replace(options, num_shards=1)
    merge_shards(options)
    joined = files_of(whole)
    parts = shards_of(options)
    for suffix in (".bin", ".idx", ".json"):
        os.remove(parts[1].prefixes[1] + suffix)
    parts[1].journal_path.write_text("{}")
    again = replace(options, overwrite=True)
    with pytest.raises(ValueError, match=r"of the 3 shards of .*out, 1 is missing: 1 \(1 begun and not finished\)"):
        merge_shards(again)
    os.remove(parts[2].prefixes[0] + ".idx")
    with pytest.raises(ValueError, match=r"2 are missing: 1, 2 .*run --shard-id 1 --resume and so on"):
        merge_shards(again)
    parts[1].journal_path.unlink()
    for number in (1, 2):
        preprocess.preprocess(replace(parts[number], overwrite=True))
    merge_shards(again)
    assert files_of(whole) == joined


def test_shards_of_another_command_are_refused(options: PreprocessOptions) -> None:
    make(options)
    with pytest.raises(ValueError, match="was made with append-eod True, but this command has False; give the flags"):
        merge_shards(replace(options, append_eod=False))
    null = DataConfig(tokenizer_type="NullTokenizer", vocab_size=9)
    with pytest.raises(ValueError, match=r"was made with tokenizer [0-9a-f]{64}, but this command has [0-9a-f]{64}"):
        merge_shards(replace(options, data=null))


def test_shards_of_other_inputs_are_refused(options: PreprocessOptions) -> None:
    """A file that one machine did not see would shift what the others read."""
    make(options)
    other = replace(options, shard_id=2, inputs=options.inputs[:1], overwrite=True)
    preprocess.preprocess(other)
    with pytest.raises(ValueError, match=r"not shards of the same run: the input is 1 files, .* in one and 2 files, "):
        merge_shards(options)
