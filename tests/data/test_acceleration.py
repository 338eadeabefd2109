"""Every accelerator gives the plain tokenizer's tokens, or is not used."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data import acceleration, segments
from megatron_fwpkm.data.acceleration import (
    PROBES,
    AcceleratorMismatch,
    build_encoder,
    choose_accelerator,
    gigatoken_description,
)
from megatron_fwpkm.data.segments import SegmentEncoder
from megatron_fwpkm.data.tokenizers import SentencePieceTokenizer, Tokenizer, build_tokenizer
from megatron_fwpkm.data.train_tokenizer import TokenizerOptions, train_tokenizer

from .conftest import novel
from .test_preprocess import jsonl, run


@pytest.fixture(scope="module")
def separable(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer as tools/train_tokenizer.py makes it."""
    folder = tmp_path_factory.mktemp("separable")
    (folder / "a.txt").write_text(novel(60_000))
    report = train_tokenizer(TokenizerOptions((str(folder / "a.txt"),), str(folder / "t"), 800))
    return build_tokenizer(DataConfig(tokenizer_model=str(report.model)))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> SegmentEncoder:
    """Of a tokenizer whose own pieces reach over everything but spaces and line ends."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "a.txt").write_text(novel(30_000))
    extra = ("o(1", "1st", "\u2581\u2581he")
    options = TokenizerOptions((str(folder / "a.txt"),), str(folder / "t"), 600, extra_pieces=extra)
    tokenizer = build_tokenizer(DataConfig(tokenizer_model=str(train_tokenizer(options).model)))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return SegmentEncoder(tokenizer)


def ways() -> list[str]:
    try:
        installed = importlib.metadata.version("gigatoken") == acceleration.GIGATOKEN_VERSION
    except importlib.metadata.PackageNotFoundError:
        installed = False
    return ["segments", "gigatoken"] if installed else ["segments"]


TEXT = st.one_of(
    st.text(st.sampled_from(" \n\t\r\u2581\u2028\x00aehlost.,1290\u00e9\U0001f600</s>"), max_size=40),
    st.text(max_size=20).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)),
    st.integers(0, 50_000).map(lambda at: novel(60_000)[at : at + 200]),
)


@pytest.mark.parametrize("way", ways())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, max_size=4))
def test_the_same_tokens(separable: Tokenizer, way: Any, texts: list[str]) -> None:
    chosen, _, told = choose_accelerator(separable, way)
    assert (chosen, told) == (way, "")
    encode = acceleration._BUILDERS[way](separable)
    assert encode(texts) == build_encoder(separable, "none")(texts)
    assert encode(list(PROBES)) == build_encoder(separable, "none")(list(PROBES))


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, max_size=9), kept=st.integers(1, 40))
def test_segments_are_exact_whatever_is_kept(odd: SegmentEncoder, texts: list[str], kept: int) -> None:
    """Also with pieces of letters, digits and signs in one, with long segments, and while the store is emptied."""
    texts = [text.replace("o", "o(1st").replace("h", "h" * 60) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_SEGMENTS_KEPT", kept)
        for _ in range(2):
            assert odd(texts) == build_encoder(odd._tokenizer, "none")(texts)
    assert not [segment for segment in odd._store if len(segment) > segments._LONGEST_KEPT]


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


def test_what_cannot_be_cut_is_refused(tmp_path: Path, separable: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(novel(60_000))
    for changes, message in (
        ({"normalization": "nmt_nfkc"}, "the model normalizes text"),
        ({"extra_pieces": ("a\u2581b",)}, "reaches over a space"),
    ):
        options = TokenizerOptions((str(tmp_path / "a.txt"),), str(tmp_path / "t"), 800, overwrite=True, **changes)  # type: ignore[arg-type]
        model = train_tokenizer(options).model
        chosen, _, told = choose_accelerator(build_tokenizer(DataConfig(tokenizer_model=str(model))), "segments")
        assert chosen == "none" and message in told and told.endswith("using the plain tokenizer")
    numbers = build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=9))
    chosen, _, told = choose_accelerator(numbers, "auto")
    assert (chosen, told) == ("none", "")
    monkeypatch.setattr(acceleration, "GIGATOKEN_VERSION", "0.0")
    chosen, _, told = choose_accelerator(separable, "gigatoken")
    assert chosen == "segments" and told.startswith("gigatoken: ") and told.endswith("using segments instead")


def test_gigatoken_gets_what_its_own_conversion_makes(separable: Tokenizer, odd: SegmentEncoder) -> None:
    convert = pytest.importorskip("gigatoken._load.sentencepiece").sentencepiece_to_tokenizer_json
    for tokenizer in (separable, odd._tokenizer):
        assert isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.path is not None
        expected = json.loads(convert(tokenizer.path.read_bytes())) | {"added_tokens": []}
        assert json.loads(json.dumps(gigatoken_description(tokenizer))) == expected


def test_gigatoken_is_loaded_anew_when_the_process_has_grown(
    separable: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rust = pytest.importorskip("gigatoken.gigatoken_rs")
    loads, load, sizes = [], rust.load_hf_json, [0]
    monkeypatch.setattr(rust, "load_hf_json", lambda text: loads.append(1) or load(text))
    monkeypatch.setattr(acceleration, "_resident_bytes", lambda: sizes[0])
    monkeypatch.setattr(acceleration, "_LEAST_TEXT_PER_LOAD", 9)
    encode, texts = acceleration._BUILDERS["gigatoken"](separable), ["Sir Walter", "of Kellynch"]
    expected = build_encoder(separable, "none")(texts)
    for size_after, loaded in ((0, 1), (140_000_001, 1), (0, 2), (0, 2)):
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
    assert "other tokens than the plain tokenizer" in capsys.readouterr().err and "plain" in report.accelerator
    for suffix in ("bin", "idx"):
        name = f"out_text_document.{suffix}"
        assert (tmp_path / name).read_bytes() == (tmp_path / "right" / name).read_bytes()
    with pytest.raises(AcceleratorMismatch, match="for 'Sir Walter'"):
        build_encoder(separable, "segments")(["Sir Walter"])
