"""Options and inputs that do nothing or are no text: said at once, by flag and value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.config.tool_options import parse_tool
from megatron_fwpkm.data.corpus import records
from megatron_fwpkm.data.corpus.records import BadRecord, Block, Record
from megatron_fwpkm.data.preprocess.preprocess_flags import check_tokenizer_flags
from megatron_fwpkm.data.preprocess.run import PreprocessOptions
from megatron_fwpkm.data.tokenizers import build_tokenizer, train_tokenizer
from tools.preprocess_data import build_parser

from ..conftest import novel
from ..tokenizers.test_train_tokenizer import train
from .test_preprocess import jsonl, run


@pytest.mark.parametrize(
    ("kind", "name"),
    [("SentencePieceTokenizer", "e.model"), ("TikTokenizer", "e.json"), ("HuggingFaceTokenizer", "tokenizer.json")],
)
def test_an_empty_tokenizer_is_named(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"--tokenizer-model .*{name} is empty; download or train it again"):
        build_tokenizer(DataConfig(tokenizer_type=kind, tokenizer_model=str(tmp_path / name)))


def test_vocabularies_that_nothing_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["text " * 99])
    monkeypatch.setattr(train_tokenizer, "_train", None)  # or it takes up to a minute
    for size in (10**9, 10**20):
        with pytest.raises(ValueError, match=f"--vocab-size {size} must be at most 16777216"):
            train(tmp_path, source, vocab_size=size)
    for size in (2**31 - 1, 10**20):
        with pytest.raises(ValueError, match=f"{size} must be at most 2147483646: ids are 32-bit integers"):
            build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=size))
    assert build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=2**31 - 2)).vocab_size == 2**31 - 1


def test_a_bad_record_ends_the_training_of_a_tokenizer_at_once(tmp_path: Path) -> None:
    """Not after pieces have been made of what stands in front of it."""
    source = jsonl(tmp_path / "a.jsonl", [novel(600 * part)[-600:] for part in range(1, 51)])
    source.write_text(source.read_text() + "{bad\n")
    with pytest.raises(ValueError, match="a.jsonl:51: bad JSON") as refused:
        train(tmp_path, source, vocab_size=400)  # enough text, so nothing else would end it
    assert isinstance(refused.value.__cause__, RuntimeError), "the trainer itself was ended"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tiktoken-pattern v1", "--tiktoken-pattern v1 has no effect with --tokenizer-type SentencePieceTokenizer"),
        (
            "--tiktoken-num-special-tokens 9 --tokenizer-type HuggingFaceTokenizer",
            "--tiktoken-num-special-tokens 9 has no effect",
        ),
        (
            "--tiktoken-special-tokens <s> </s> --tokenizer-type NullTokenizer",
            "--tiktoken-special-tokens <s> </s> has no effect",
        ),
        ("--tokenizer-model a --tokenizer-type ByteLevelTokenizer", "--tokenizer-model a has no effect"),
        ("--tokenizer-model a --tokenizer-type NullTokenizer", "reads no file; remove it"),
    ],
)
def test_flags_of_other_tokenizers(words: str, message: str) -> None:
    given = ["--input", "a", "--output-prefix", "b", *words.split()]
    options = parse_tool(build_parser(), PreprocessOptions, given)
    with pytest.raises(ValueError, match=message):
        check_tokenizer_flags(options.data)


def test_flags_of_this_tokenizer() -> None:
    words = "--tokenizer-type TikTokenizer --tokenizer-model a --tiktoken-pattern v1 --tiktoken-num-special-tokens 9"
    given = ["--input", "a", "--output-prefix", "b", *words.split()]
    options = parse_tool(build_parser(), PreprocessOptions, given)
    check_tokenizer_flags(options.data)
    assert options.data.tiktoken_num_special_tokens == 9


@pytest.mark.parametrize("orjson", [True, False])
def test_text_with_nul_is_no_text(orjson: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not orjson:
        monkeypatch.setattr(records, "orjson", None)
    lines = b"\n".join(json.dumps({"text": text}).encode() for text in ("a\0b", "\0\0", "good"))
    for kind, data in (("jsonl", lines), ("line", b"a\0b\n\0\0\ngood")):
        block = Block("a", kind, 1, data, 0)  # type: ignore[arg-type]
        found = {way: list(records.records(block, ("text",), way)) for way in ("reject", "replace", "drop")}
        bad = [(one.line, one.reason) for one in found["reject"] if isinstance(one, BadRecord)]
        assert bad == [(1, "NUL"), (2, "NUL")] and "character 1; is this a binary file?" in str(found["reject"][0])
        texts = {way: [one.texts[0] for one in some if isinstance(one, Record)] for way, some in found.items()}
        assert texts == {"reject": ["good"], "replace": ["a\ufffdb", "\ufffd\ufffd", "good"], "drop": ["ab", "good"]}
        assert [one.reason for one in found["drop"] if isinstance(one, BadRecord)] == ["empty document"]


def test_a_file_of_nuls_ends_the_run(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "zeros.txt").write_bytes(bytes(4096))
    with pytest.raises(ValueError, match=r"zeros\.txt:1: NUL \(character 0; is this a binary file\?\); nothing"):
        run(tmp_path, tokenizer_file, tmp_path / "zeros.txt")


def test_options_that_do_nothing_with_these_inputs(
    tmp_path: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, text = jsonl(tmp_path / "a.jsonl", ["one"]), tmp_path / "b.txt"
    text.write_text("two")
    run(tmp_path, tokenizer_file, lines, txt_documents="line")
    assert capsys.readouterr().err.count("note: --txt-documents line has no effect: no input is a text file") == 1
    run(tmp_path, tokenizer_file, text, json_keys=("a", "b"), overwrite=True)
    assert "b.txt give the same text for every key" in capsys.readouterr().err
    run(tmp_path, tokenizer_file, text, txt_documents="line", overwrite=True)
    assert capsys.readouterr().err == ""
