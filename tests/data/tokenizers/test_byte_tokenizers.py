"""Tokenizers of bytes: tiktoken ranks in Megatron-LM's layout, and the bytes themselves."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer

from ..conftest import novel
from ..preprocess.test_preprocess import jsonl, run

tiktoken = pytest.importorskip("tiktoken", reason="the extra [data] is not installed")
MERGES = (b" t", b"he", b" the", b"in", b"ing", b" w", b" wa", b" was", b"ll", b"er", b" walt", b" wit", b" with")
SPECIAL = ("<unk>", "<s>", "</s>")


def pieces() -> list[bytes]:
    parts = {piece[:end] for piece in MERGES for end in range(2, len(piece) + 1)}
    return [bytes([byte]) for byte in range(256)] + sorted(parts, key=lambda piece: (len(piece), piece))


@pytest.fixture(params=["json", "tiktoken"])
def ranks(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of ranks in either form."""
    coded = [base64.b64encode(piece).decode() for piece in pieces()]
    path = tmp_path / f"ranks.{request.param}"
    if request.param == "json":
        path.write_text(json.dumps([{"rank": i, "token_bytes": code, "token_str": ""} for i, code in enumerate(coded)]))
    else:
        path.write_text("".join(f"{code} {i}\n" for i, code in enumerate(coded)))
    return path


def tik(path: Path, **changes: Any) -> Tokenizer:
    options = {"tiktoken_special_tokens": SPECIAL, "tiktoken_num_special_tokens": 10} | changes
    return build_tokenizer(DataConfig(tokenizer_type="TikTokenizer", tokenizer_model=str(path), **options))


def test_special_tokens_come_first(ranks: Path) -> None:
    tokenizer = tik(ranks)
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.bos) == (10 + len(pieces()), 2, 1)
    assert tokenizer.encode("a </s>") == [10 + byte for byte in b"a </s>"]
    assert tokenizer.encode(" the") == [10 + pieces().index(b" the")]
    assert tokenizer.decode([1, *tokenizer.encode(" the \u00e9"), 2]) == " the \u00e9"
    assert list(tokenizer.control_tokens()) == [*SPECIAL, *(f"<SPECIAL_{number}>" for number in range(3, 10))]
    assert tokenizer.whole_words() == ["walt", "with"]


def test_ids_are_those_of_megatron_core(ranks: Path) -> None:
    """Its tokenizer reads the JSON form only, and takes no fewer than seven special tokens."""
    library = pytest.importorskip("megatron.core.tokenizers.text.libraries.tiktoken_tokenizer")
    if ranks.suffix != ".json":
        pytest.skip("megatron.core reads JSON only")
    names = DataConfig().tiktoken_special_tokens
    for pattern in ("v1", "v2"):
        mine = tik(ranks, tiktoken_pattern=pattern, tiktoken_special_tokens=names)
        theirs = library.TikTokenTokenizer(
            str(ranks), num_special_tokens=10, pattern=pattern, vocab_size=mine.vocab_size
        )
        text = novel(20_000) + " 12345 \n\n  x \u4f60\u597d don't CamelCase\r\n/"
        assert mine.encode(text) == theirs.text_to_ids(text)
        assert (mine.eod, mine.bos) == (theirs.eos_id, theirs.bos_id)


def test_the_identity_is_of_all_that_decides_the_ids(ranks: Path) -> None:
    kinds = [
        tik(ranks), tik(ranks, tiktoken_pattern="v1"), tik(ranks, tiktoken_num_special_tokens=11),
        tik(ranks, vocab_size=270), tik(ranks, tiktoken_special_tokens=("</s>", "<s>", "<unk>")),
    ]  # fmt: skip
    assert len({kind.identity for kind in kinds}) == len(kinds)
    assert kinds[3].vocab_size == 270 and max(kinds[3].encode(novel(2000))) < 270


@settings(max_examples=100, deadline=None)
@given(st.text().filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
def test_bytes_come_back(text: str) -> None:
    tokenizer = build_tokenizer(DataConfig(tokenizer_type="ByteLevelTokenizer"))
    ids = tokenizer.encode(text)
    assert bytes(ids).decode() == text == tokenizer.decode([257, *ids, 256])
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.bos, tokenizer.whole_words()) == (258, 256, 257, [])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tiktoken_special_tokens": ("<s>", "<unk>")}, "must be unique, include </s> "),
        ({"tiktoken_num_special_tokens": 2}, "at most --tiktoken-num-special-tokens 2"),
        ({"vocab_size": 9}, r"--vocab-size 9 is outside 266\.\.\d+: 10 special tokens and 256 to \d+ ranks"),
    ],
)
def test_wrong_options_are_refused(ranks: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tik(ranks, **changes)


def test_wrong_files_are_refused(ranks: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.tiktoken"
    for content, message in (
        ("not ranks", "contains no tiktoken ranks"), ('[{"rank": 0}]', "contains no tiktoken ranks"),
        ("YQ== 0\nYg== 2\n", r"the ranks are not 0, 1, 2,"), ("YQ== 0\n", "has no rank for 255 of the 256 bytes"),
    ):  # fmt: skip
        wrong.write_text(content)
        with pytest.raises(ValueError, match=message):
            tik(wrong)
    with pytest.raises(ValueError, match="is a folder; TikTokenizer expects a file of ranks"):
        tik(tmp_path)
    for kind in (tik(ranks), build_tokenizer(DataConfig(tokenizer_type="ByteLevelTokenizer"))):
        with pytest.raises(ValueError, match="lone surrogate at character 1: not valid Unicode"):
            kind.encode("a\ud800b")
    with pytest.raises(ValueError, match="--vocab-size 256 differs from the vocabulary size 258 of ByteLevelTokenizer"):
        build_tokenizer(DataConfig(tokenizer_type="ByteLevelTokenizer", vocab_size=256))


def test_a_corpus_of_each(ranks: Path, tmp_path: Path) -> None:
    """EOD, BOS and control tokens: text by default, tokens or bad records by flag, refused where there are none."""
    source = jsonl(tmp_path / "a.jsonl", ["Sir </s> Walter", "plain"])
    data = DataConfig(
        tokenizer_type="TikTokenizer", tokenizer_model=str(ranks), tiktoken_special_tokens=SPECIAL,
        tiktoken_num_special_tokens=10,
    )  # fmt: skip
    for control, tokens, documents in (("text", 14 + 4 + 4, 2), ("parse", 11 + 4 + 4, 2), ("fail", 4 + 2, 1)):
        report = run(
            tmp_path, None, source, data=data, control_tokens=control, append_eod=True, prepend_bos=True,  # type: ignore[arg-type]
            overwrite=True, on_error="skip", verify=9,
        )  # fmt: skip
        assert (report.tokens, report.documents) == ([tokens], documents)
    data = DataConfig(tokenizer_type="ByteLevelTokenizer")
    report = run(tmp_path / "b", None, source, data=data, append_eod=True, verify=2)
    assert report.tokens == [len("Sir </s> Walter") + len("plain") + 2] and "decode back" in report.verified
    with pytest.raises(ValueError, match="--control-tokens fail: ByteLevelTokenizer has no control tokens that"):
        run(tmp_path / "c", None, source, data=data, control_tokens="fail")
