"""Every accelerator gives the plain tokenizer's tokens, or is not used."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from string import ascii_letters
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as schema

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.encoders import acceleration, gigatoken_encoder, gigatoken_library, segment_store, segments
from megatron_fwpkm.data.encoders.acceleration import PROBES, AcceleratorMismatch, build_encoder, choose_accelerator
from megatron_fwpkm.data.encoders.gigatoken_encoder import EXCHANGED, gigatoken_description
from megatron_fwpkm.data.encoders.gigatoken_library import GIGATOKEN_VERSION
from megatron_fwpkm.data.encoders.segments import SegmentEncoder, edge_classes
from megatron_fwpkm.data.encoders.sentencepiece_model import NORMAL, UNUSED, USER_DEFINED, piece_kinds, split_model
from megatron_fwpkm.data.tokenizers import SentencePieceTokenizer, Tokenizer, build_tokenizer
from megatron_fwpkm.data.tokenizers.train_tokenizer import TokenizerOptions, train_tokenizer
from tests.quick_cases import examples

from ..conftest import novel
from ..preprocess.test_preprocess import jsonl, run


@pytest.fixture(scope="module")
def separable(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer as tools/train_tokenizer.py makes it."""
    folder = tmp_path_factory.mktemp("separable")
    (folder / "a.txt").write_text(novel(60_000))
    report = train_tokenizer(TokenizerOptions((str(folder / "a.txt"),), str(folder / "t"), 800))
    return build_tokenizer(DataConfig(tokenizer_model=str(report.model)))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> SegmentEncoder:
    """Of a tokenizer whose own pieces reach over letters, digits, signs and spaces."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "a.txt").write_text(novel(30_000))
    extra = ("o(1", "1st", "\u2581\u2581he", "d\u2581t")
    options = TokenizerOptions((str(folder / "a.txt"),), str(folder / "t"), 600, extra_pieces=extra)
    tokenizer = build_tokenizer(DataConfig(tokenizer_model=str(train_tokenizer(options).model)))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return SegmentEncoder(tokenizer)


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of another tool, with pieces of several words."""
    folder = tmp_path_factory.mktemp("crossing")
    (folder / "a.txt").write_text(novel(40_000) + ' (a/b) -c_d; e? f! g: "h"\n' * 20)
    SentencePieceTrainer.train(  # type: ignore[attr-defined]
        input=str(folder / "a.txt"), model_prefix=str(folder / "t"), vocab_size=700, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_by_whitespace=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = build_tokenizer(DataConfig(tokenizer_model=str(folder / "t.model")))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert len([piece for piece in tokenizer.pieces() if "\u2581" in piece[1:].strip("\u2581")]) > 5
    return tokenizer


def ways() -> list[str]:
    try:
        installed = importlib.metadata.version("gigatoken") == GIGATOKEN_VERSION
    except importlib.metadata.PackageNotFoundError:
        installed = False
    return ["segments", "gigatoken"] if installed else ["segments"]


TEXT = st.one_of(
    st.text(st.sampled_from(" \n\t\r\u2581\u2028\x00aehlost.,1290\u00e9\U0001f600</s>"), max_size=40),
    st.text(max_size=20).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)),
    st.integers(0, 50_000).map(lambda at: novel(60_000)[at : at + 200]),
)


@pytest.mark.parametrize("way", ways())
@examples(20, 150, HealthCheck.function_scoped_fixture)
@given(texts=st.lists(TEXT, max_size=4))
def test_the_same_tokens(separable: Tokenizer, crossing: Tokenizer, way: Any, texts: list[str]) -> None:
    for tokenizer in (separable, crossing):
        chosen, _, told = choose_accelerator(tokenizer, way)
        assert (chosen, told) == (way, "")
        encode = acceleration._BUILDERS[way](tokenizer)
        assert encode(texts) == build_encoder(tokenizer, "none")(texts)
        assert encode(list(PROBES)) == build_encoder(tokenizer, "none")(list(PROBES))


@examples(25, 60)
@given(texts=st.lists(TEXT, max_size=9), kept=st.integers(1, 60), window=st.integers(1, 60), once=st.integers(0, 90))
def test_segments_are_exact_whatever_is_kept(
    odd: SegmentEncoder, texts: list[str], kept: int, window: int, once: int
) -> None:
    """Also with pieces of letters, digits, signs and spaces in one, with long segments, while the store is emptied, and
    wherever a window ends."""
    texts = [text.replace("o", "o(1st").replace("h", "h" * 60) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (segment_store, "_SLOTS", 128), (segment_store, "_SHIFT", np.uint64(57)), (segment_store, "_KEPT", kept),
            (segments, "_WINDOW", window), (segments, "_BYTES_AT_ONCE", once), (segments, "_TOKENS_KEPT", kept),
        ):  # fmt: skip
            patch.setattr(module, name, value)
        odd._forget()
        for _ in range(2):
            assert odd(texts) == build_encoder(odd._tokenizer, "none")(texts)
    assert not [segment for segment in odd._store._longer if len(segment) > 48]
    odd._forget()


def test_texts_longer_than_a_window(odd: SegmentEncoder) -> None:
    """A text without an edge, whose parts are looked for in ever longer windows, between ordinary ones."""
    texts = [novel(60_000), "h" * 300_000 + "1st", novel(60_000) * 3, "h" * 70_000, ""]
    found = odd(texts)
    assert found == build_encoder(odd._tokenizer, "none")(texts)
    assert odd(texts) == found


def test_the_sign_for_a_space_is_not_cut_from_spaces(odd: SegmentEncoder) -> None:
    texts = ["\u2581 he", " \u2581he", "a \u2581 he"]
    assert odd(texts) == build_encoder(odd._tokenizer, "none")(texts)


def test_tokens_are_not_kept_for_ever(odd: SegmentEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_TOKENS_KEPT", 100)
    monkeypatch.setattr(segments, "_WINDOW", 64)
    odd([f"{number}" for number in range(1_000)])
    assert odd._used <= 100 + 64
    monkeypatch.undo()
    odd._forget()


def test_a_long_window_brings_one_segment(odd: SegmentEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the store, in which a search ends at a free slot, could be filled up by what follows."""
    for name, value in (("_SLOTS", 256), ("_SHIFT", np.uint64(56)), ("_KEPT", 64)):
        monkeypatch.setattr(segment_store, name, value)
    monkeypatch.setattr(segments, "_WINDOW", 64)
    odd._forget()
    texts = ["h" * 5_000 + "".join(f" {number}" for number in range(1_000))]
    assert odd(texts) == build_encoder(odd._tokenizer, "none")(texts)
    monkeypatch.undo()
    odd._forget()


PIECES = st.lists(st.text(st.sampled_from("ab1.,(>\u2581\u00e9\u4f60"), min_size=1, max_size=4), max_size=12)


@given(pieces=PIECES)
def test_no_piece_reaches_over_an_edge(pieces: list[str]) -> None:
    before, behind = edge_classes(pieces)
    for piece in pieces:
        spelled = piece.replace("\u2581", " ").encode()
        assert not any(before[x] & behind[y] for x, y in zip(spelled, spelled[1:], strict=False)), piece
    assert not any(before[x] & behind[y] for x in range(256) for y in range(0x80, 0xC0))  # within a character
    assert all(before[10] & behind[y] and before[y] & behind[10] for y in b"ab .1\n")


def test_where_the_edges_are() -> None:
    before, behind = edge_classes(["\u2581a", "a.", "b)", "(b", "\u2581\u2581", "c\u2581d", "<s>"])

    def is_edge(pair: str) -> bool:
        return bool(before[ord(pair[0])] & behind[ord(pair[1])])

    assert [pair for pair in ("a ", "b(", ") ", "((", "\na", "a\n", "1(", ".(", "\n\n") if not is_edge(pair)] == []
    # pieces; a sign that a letter stands in front of in a piece; what is not a sign; a piece that reaches over a space
    assert [pair for pair in (" a", "a.", "1)", "ab", "a1", "c ", "s>", "(b") if is_edge(pair)] == []


@pytest.mark.parametrize("way", ways())
def test_whole_runs_write_the_same_bytes(tmp_path: Path, separable: Tokenizer, way: Any) -> None:
    source = jsonl(tmp_path / "a.jsonl", [part for part in novel(60_000).split("\n\n") if part.strip()] + list("ab\n"))
    outputs = []
    for accelerator in (way, "none"):
        report = run(
            tmp_path, separable.path, source, accelerator=accelerator, overwrite=True, append_eod=True,  # type: ignore[arg-type]
            on_error="skip", verify=20,
        )  # fmt: skip
        assert report.accelerator == {"none": "the plain tokenizer"}.get(accelerator, way)
        outputs.append([Path(f"{report.prefixes[0]}.{suffix}").read_bytes() for suffix in ("bin", "idx", "json")])
    assert outputs[0] == outputs[1]


def test_what_cannot_be_cut_is_refused(
    tmp_path: Path, separable: Tokenizer, odd: SegmentEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(novel(60_000))
    for changes, message in (
        ({"normalization": "nmt_nfkc"}, "the model normalizes text"),
        ({"extra_pieces": tuple(f"{letter}\u2581" for letter in ascii_letters[:27])}, "span spaces after most"),
    ):
        options = TokenizerOptions((str(tmp_path / "a.txt"),), str(tmp_path / "t"), 800, overwrite=True, **changes)  # type: ignore[arg-type]
        model = train_tokenizer(options).model
        chosen, _, told = choose_accelerator(build_tokenizer(DataConfig(tokenizer_model=str(model))), "segments")
        assert chosen == "none" and message in told and told.endswith("using the plain tokenizer")
    with pytest.raises(ValueError, match=r"piece 'a\\n' spans a line end"):
        edge_classes(["\n", "a\n"])
    numbers = build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=9))
    chosen, _, told = choose_accelerator(numbers, "auto")
    assert (chosen, told) == ("none", "")
    chosen, _, told = choose_accelerator(odd._tokenizer, "gigatoken")
    assert chosen == "segments" and told.startswith("gigatoken: the model has user-defined pieces")
    monkeypatch.setattr(gigatoken_library, "GIGATOKEN_VERSION", "0.0")
    chosen, _, told = choose_accelerator(separable, "gigatoken")
    assert chosen == "segments" and told.startswith("gigatoken: ") and told.endswith("using segments instead")


def test_a_model_is_its_pieces_and_its_settings(tmp_path: Path, separable: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text(novel(30_000))
    long = ("x" * 300, "y" * 200)
    options = TokenizerOptions((str(tmp_path / "a.txt"),), str(tmp_path / "t"), 600, extra_pieces=long)
    defined = build_tokenizer(DataConfig(tokenizer_model=str(train_tokenizer(options).model)))
    for tokenizer in (separable, defined):
        assert isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.path is not None
        model = tokenizer.path.read_bytes()
        pieces, rest = split_model(model)
        assert len(pieces) == tokenizer.vocab_size and model.endswith(rest) and rest.startswith(b"\x12")
        assert all(piece.encode() in held for piece, held in zip(tokenizer.pieces(), pieces, strict=True))
        assert piece_kinds(pieces) == [piece.type for piece in schema.ModelProto.FromString(model).pieces]
    assert piece_kinds(pieces).count(USER_DEFINED) == 2


def test_gigatoken_gets_what_its_own_conversion_makes(separable: Tokenizer, crossing: Tokenizer) -> None:
    convert = pytest.importorskip("gigatoken._load.sentencepiece").sentencepiece_to_tokenizer_json
    for tokenizer in (separable, crossing):
        assert isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.path is not None
        expected = json.loads(convert(tokenizer.path.read_bytes())) | {"added_tokens": []}
        assert json.loads(json.dumps(gigatoken_description(tokenizer, tokenizer.pieces()))) == expected


def changed(tokenizer: Tokenizer, path: Path, change: Callable[[Any], None]) -> Tokenizer:
    """The tokenizer of a model that `change` has changed."""
    assert tokenizer.path is not None
    model = schema.ModelProto.FromString(tokenizer.path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    return build_tokenizer(DataConfig(tokenizer_model=str(path)))


def test_gigatoken_is_not_given_what_it_would_get_wrong(tmp_path: Path, separable: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text(novel(60_000))
    options = TokenizerOptions((str(tmp_path / "a.txt"),), str(tmp_path / "t"), 800, normalization="nfkc")
    nfkc = build_tokenizer(DataConfig(tokenizer_model=str(train_tokenizer(options).model)))
    assert nfkc.encode("\uff1a")[-1:] == nfkc.encode(":")[-1:]  # no character that changes places stands in this text
    assert isinstance(separable, SentencePieceTokenizer)
    the, letter = separable.pieces().index("\u2581the"), separable.pieces().index("t")
    unused = changed(separable, tmp_path / "u.model", lambda model: setattr(model.pieces[the], "type", UNUSED))
    alone = changed(separable, tmp_path / "a.model", lambda model: setattr(model.pieces[letter], "piece", "zqzq"))

    def level(model: Any) -> None:
        model.pieces[the].score = next(piece.score for piece in model.pieces if piece.piece == "he")

    tied = changed(separable, tmp_path / "s.model", level)
    for tokenizer, told in (
        (tied, "the model has another piece with the score of '.?he'"), (nfkc, "the model normalizes text"),
        (unused, "the model has unused pieces"),
        (alone, "the model has pieces with 't', but gigatoken also needs"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            acceleration._BUILDERS["gigatoken"](tokenizer)


@pytest.mark.parametrize("way", ways())
def test_control_pieces_are_never_merged_and_no_model_needs_a_space_in_front(
    tmp_path: Path, separable: Tokenizer, way: Any
) -> None:
    def change(model: Any) -> None:
        model.normalizer_spec.add_dummy_prefix = False
        control = next(piece for piece in model.pieces if piece.piece == "\u2581the")
        assert control.type == NORMAL
        control.type = schema.ModelProto.SentencePiece.CONTROL

    tokenizer = changed(separable, tmp_path / "c.model", change)
    assert tokenizer.control_tokens()["\u2581the"] not in tokenizer.encode("in the")
    chosen, encode, told = choose_accelerator(tokenizer, way)
    texts = ["the", " the\n\nthe", "\n", novel(9_000), *PROBES]
    assert (chosen, told) == (way, "") and encode(texts) == build_encoder(tokenizer, "none")(texts)


@given(text=st.text().filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
def test_bytes_and_characters_change_the_same_places(text: str) -> None:
    moved = text.encode().translate(gigatoken_encoder._EXCHANGED_BYTES)
    assert moved == text.translate(EXCHANGED).encode() and text.translate(EXCHANGED).translate(EXCHANGED) == text


def test_gigatoken_is_loaded_anew_when_the_process_has_grown(
    separable: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rust = pytest.importorskip("gigatoken.gigatoken_rs")
    loads, load, sizes = [], rust.load_hf_json, [0]
    monkeypatch.setattr(rust, "load_hf_json", lambda text: loads.append(1) or load(text))
    monkeypatch.setattr(gigatoken_library, "_resident_bytes", lambda: sizes[0])
    monkeypatch.setattr(gigatoken_library, "_LEAST_TEXT_PER_LOAD", 9)
    encode, texts = acceleration._BUILDERS["gigatoken"](separable), ["Sir Walter", "of Kellynch"]
    expected = build_encoder(separable, "none")(texts)
    for size_after, loaded in ((0, 1), (140_000_001, 1), (140_000_001, 2), (140_000_001, 2), (0, 2)):
        assert encode(texts) == expected and len(loads) == loaded
        sizes[0] = size_after


def wrong(tokenizer: Tokenizer) -> Any:
    """Right for the probes and for short texts, wrong for one word."""
    plain = build_encoder(tokenizer, "none")
    return lambda texts: plain([text.replace("Walter", "Water") for text in texts])


def test_a_mismatch_starts_over_with_the_plain_tokenizer(
    tmp_path: Path, separable: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = jsonl(tmp_path / "a.jsonl", [part for part in novel(30_000).split("\n\n") if part.strip()])
    assert separable.path is not None
    run(tmp_path / "right", separable.path, source, accelerator="none")
    monkeypatch.setitem(acceleration._BUILDERS, "segments", wrong)
    report = run(tmp_path, separable.path, source, accelerator="segments")
    assert "its tokens differ from the plain tokenizer's" in capsys.readouterr().err and "plain" in report.accelerator
    for suffix in ("bin", "idx"):
        name = f"out_text_document.{suffix}"
        assert (tmp_path / name).read_bytes() == (tmp_path / "right" / name).read_bytes()
    with pytest.raises(AcceleratorMismatch, match="for 'Sir Walter'"):
        build_encoder(separable, "segments")(["Sir Walter"])
    with open(source, "rb") as stream:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        with pytest.raises(ValueError, match="its tokens differ .*; use --accelerator none with --input -"):
            run(tmp_path / "pipe", separable.path, Path("-"), accelerator="segments")


class Panic(BaseException):
    """What Rust raises is no Exception."""


@pytest.mark.parametrize("trouble", [Panic("index out of bounds"), AssertionError(), KeyboardInterrupt()])
def test_an_accelerator_that_fails_is_not_used(
    separable: Tokenizer, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    def failing(texts: list[str]) -> list[bytes]:
        raise trouble

    monkeypatch.setitem(acceleration._BUILDERS, "segments", lambda tokenizer: failing)
    if isinstance(trouble, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            choose_accelerator(separable, "segments")
        return
    chosen, _, told = choose_accelerator(separable, "segments")
    assert chosen == "none" and told.startswith(f"segments: it failed with {trouble!r}")
    with pytest.raises(AcceleratorMismatch, match="it failed with"):
        build_encoder(separable, "segments")(["a"])


def test_comparing_takes_a_small_part_of_the_time(separable: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every block is one document, as with books; and what is compared is spread over all."""
    plain, compared, calls = acceleration._plain, list[int](), list[list[str]]()

    def noted(tokenizer: Tokenizer, texts: list[str]) -> list[bytes]:
        compared.append(len(calls))
        return plain(tokenizer, texts)

    def fast(tokenizer: Tokenizer) -> Any:
        calls.clear()
        compared.clear()
        return lambda texts: (calls.append(texts), plain(tokenizer, texts))[1]

    monkeypatch.setattr(acceleration, "_plain", noted)
    monkeypatch.setitem(acceleration._BUILDERS, "segments", fast)
    monkeypatch.setattr(acceleration, "_CHARACTERS_AT_FIRST", 40_000)
    encode, book = build_encoder(separable, "segments"), novel(10_000)
    for _ in range(200):
        encode([book])
    assert compared[:4] == [1, 2, 3, 4] and len(compared) == 4 + 200 // 64 and compared[-1] > 180
    encode = build_encoder(separable, "segments")
    for _ in range(200):
        encode(["a b"] * 10)
    assert len(compared) == 100 + 190
