"""Tokenizer training: reproducible, lossless, with the ids that documents are ended by, and clear refusals."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.conversion.special_tokens import sentencepiece_ids
from megatron_fwpkm.data.progress_report import ProgressReport
from megatron_fwpkm.data.tokenizers import SentencePieceTokenizer, build_tokenizer
from megatron_fwpkm.data.tokenizers import train_tokenizer as module
from megatron_fwpkm.data.tokenizers.train_tokenizer import TokenizerOptions, TokenizerReport, train_tokenizer

from ..conftest import novel


def train(tmp_path: Path, *inputs: Path, **changes: Any) -> TokenizerReport:
    options = {"output_prefix": str(tmp_path / "tokenizer"), "vocab_size": 600} | changes
    silent = ProgressReport(0, stream=io.StringIO())
    return train_tokenizer(TokenizerOptions(tuple(map(str, inputs)), **options), silent)


def load(path: Path) -> SentencePieceTokenizer:
    tokenizer = build_tokenizer(DataConfig(tokenizer_model=str(path)))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(novel(50_000) + "In 1811 and 1818.\n" * 40, encoding="utf-8")
    return path


def test_training_is_reproducible_whatever_the_form_of_the_input(tmp_path: Path, text: Path) -> None:
    packed = tmp_path / "packed.bin"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    parts = [part for part in text.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"content": part}) + "\n" for part in parts))
    models = []
    for name, path, changes in (("a", text, {}), ("b", packed, {}), ("c", lines, {"json_keys": ("content",)})):
        report = train(tmp_path, path, output_prefix=str(tmp_path / name), **changes)
        models.append(report.model.read_bytes())
    assert models[0] == models[1] == models[2]
    assert not list(tmp_path.glob("*.partial"))


def test_pieces_and_ids(tmp_path: Path, text: Path) -> None:
    report = train(tmp_path, text, extra_pieces=("<sep>", "Elliot"))
    tokenizer = load(report.model)
    pieces = [tokenizer.piece(token) for token in range(600)]
    assert pieces[:6] == ["<unk>", "<s>", "</s>", "<pad>", "<sep>", "Elliot"]
    assert tokenizer.control_tokens() == {"<s>": 1, "</s>": 2, "<pad>": 3}
    assert sentencepiece_ids(report.model, bos_occurs=False).pad == 3, "what an export pads with"
    assert 3 not in tokenizer.encode("a <pad> in text stays text") and tokenizer.decode([3]) == ""
    assert (tokenizer.eod, tokenizer.bos, tokenizer.vocab_size, report.vocab_size) == (2, 1, 600, 600)
    assert sum(map(tokenizer.is_byte, range(600))) == 256
    assert not any(sum(character.isdigit() for character in piece) > 1 for piece in pieces if piece[:3] != "<0x")
    assert len(tokenizer.encode("x<sep>y")) == 4 and 5 in tokenizer.encode("Miss Anne Elliot said")
    vocabulary = (tmp_path / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    assert len(vocabulary) == 600 and vocabulary[2] == "2\t</s>"
    without = load(train(tmp_path, text, extra_pieces=("<pad>",), pad_token=False, overwrite=True).model)
    assert [without.piece(token) for token in range(5)] == ["<unk>", "<s>", "</s>", "<pad>", "<0x00>"]
    assert without.control_tokens() == {"<s>": 1, "</s>": 2} and 3 in without.encode("a <pad>")


@pytest.mark.parametrize(
    "string", ["1811 and 42", " two  spaces\n\n\ttab ", "\u4f60\u597d\U0001f600\x00\u2028", "</s>"]
)
def test_identity_gives_the_text_back(tmp_path: Path, text: Path, string: str) -> None:
    tokenizer = load(train(tmp_path, text).model)
    assert tokenizer.decode(tokenizer.encode(string)) == string


def test_normalization_joins_white_space(tmp_path: Path, text: Path) -> None:
    tokenizer = load(train(tmp_path, text, normalization="nmt_nfkc").model)
    assert tokenizer.decode(tokenizer.encode("two  words\nhere")) == "two words here"


def test_the_report_counts(tmp_path: Path, text: Path) -> None:
    report = train(tmp_path, text)
    tokenizer = load(report.model)
    content = text.read_text(encoding="utf-8")
    paragraphs = content.split("\n\n")
    ids = [token for part in paragraphs for token in tokenizer.encode(part.strip("\n"))]
    assert report.tokens == pytest.approx(len(ids), rel=0.01)
    assert report.words == len(content.split())
    assert report.byte_pieces == pytest.approx(sum(map(tokenizer.is_byte, ids)), abs=len(paragraphs))
    assert report.byte_pieces >= report.line_ends > 100, "a novel has line ends, which are bytes"
    assert report.whole_words == len(tokenizer.whole_words())
    rows = dict(report.rows())
    assert (
        rows["pieces"] == "600" and rows["fertility"].endswith("tokens per word") and rows["model"].endswith(".model")
    )


def test_long_lines_are_cut_at_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SENTENCE", 10)
    text = "aaa bbb ccc ddd\n\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9 x\n\nend\0s"
    found = list(module._sentences(text))
    assert found == ["aaa bbb", "ccc ddd", "\u00e9" * 5, "\u00e9" * 3 + " x", "end s"]
    assert all(len(sentence.encode()) <= 10 for sentence in found)


def test_long_lines_count(tmp_path: Path) -> None:
    # SentencePiece alone drops a line of this length without a word
    path = tmp_path / "one_line.txt"
    path.write_text(novel(60_000).replace("\n", " "))
    assert train(tmp_path, path).whole_words > 20


def test_bad_records_fail_or_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": part}) for part in novel(30_000).split("\n\n")]
    path.write_text("\n".join([*rows[:3], "{bad", '{"text": "lone \\ud800"}', *rows[3:]]))
    with pytest.raises(ValueError, match=r"a\.jsonl:4: bad JSON.*use --on-error skip to leave out"):
        train(tmp_path, path)
    report = train(tmp_path, path, on_error="skip")
    assert report.skipped == {"bad JSON": 1} and ("  bad JSON", "1") in report.rows()


def test_an_input_that_vanishes_is_named(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.txt").write_text("more")
    opened = module.open_corpus

    def vanishing(*arguments: Any) -> Any:
        files = opened(*arguments)
        (tmp_path / "b.txt").unlink()
        return files

    monkeypatch.setattr(module, "open_corpus", vanishing)
    options = TokenizerOptions((str(text), str(tmp_path / "b.txt")), str(tmp_path / "t"), 600)
    with pytest.raises(FileNotFoundError, match="b.txt"):
        train_tokenizer(options, ProgressReport(0, stream=io.StringIO()))
    assert not list(tmp_path.glob("t.*"))


def test_wrong_requests_are_refused(tmp_path: Path, text: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    short = tmp_path / "short.txt"
    short.write_text("hello world\n" * 5)
    wide = tmp_path / "wide.txt"
    wide.write_text("".join(chr(0x4E00 + i) for i in range(400)))
    blocked = tmp_path / "blocked"
    blocked.touch()
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "absent.txt", {}, "--input .*absent.txt does not exist"),
        (empty, {}, "--input contains no text to train on"),
        (short, {}, r"--vocab-size 600 is too large for this corpus; the largest possible value is 28\d"),
        (wide, {"vocab_size": 300, "character_coverage": 1.0}, "is smaller than the 66. pieces that single characters"),
        (text, {"vocab_size": 200}, "--vocab-size 200 must be greater than 260, the number of control pieces \\(4\\)"),
        (text, {"character_coverage": 0.0}, "--character-coverage 0.0 must be greater than 0 and at most 1"),
        (text, {"sample_fraction": 0.0}, "--sample-fraction 0.0 must be greater than 0 and at most 1"),
        (text, {"extra_pieces": ("<s>",)}, "--extra-pieces '<s>': every piece must be unique"),
        (text, {"extra_pieces": ("x", "x")}, "--extra-pieces 'x': every piece must be unique"),
        (text, {"extra_pieces": ("a b",)}, "--extra-pieces 'a b': .* without white space"),
        (text, {"output_prefix": str(blocked / "tokenizer")}, r"cannot write .* \(--output-prefix\)"),
    ]
    for path, changes, message in cases:
        with pytest.raises(ValueError, match=message):
            train(tmp_path, path, **changes)
    assert not list(tmp_path.glob("tokenizer*"))
    train(tmp_path, text)
    with pytest.raises(ValueError, match=r"tokenizer\.model already exists"):
        train(tmp_path, text)
    assert train(tmp_path, text, vocab_size=500, overwrite=True).vocab_size == 500


def test_the_largest_possible_vocabulary_works(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("hello world\n" * 5)
    with pytest.raises(ValueError, match="largest possible value is") as refused:
        train(tmp_path, short)
    largest = int(str(refused.value).rsplit(" ", 1)[1])
    assert train(tmp_path, short, vocab_size=largest).vocab_size == largest


def test_a_sample_is_of_documents_not_of_their_order(tmp_path: Path) -> None:
    rows = [json.dumps({"text": part}) + "\n" for part in novel(60_000).split("\n\n") if part.strip()]
    models = []
    for name, lines in (("a", rows), ("b", [*rows[100:], *rows[:100]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        report = train(tmp_path, tmp_path / f"{name}.jsonl", output_prefix=str(tmp_path / name), sample_fraction=0.5)
        models.append((tmp_path / f"{name}.vocab").read_text())
    assert models[0] == models[1] and report.text_bytes > 50_000, "the report is of all text"
    kept = [module._sampled(row, 0.25) for row in rows]
    assert 0.1 < sum(kept) / len(kept) < 0.4 and kept != sorted(kept)
