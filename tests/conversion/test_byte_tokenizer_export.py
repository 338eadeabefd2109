"""Tokenizers of tiktoken ranks and of bytes in Transformers' form: the same ids and texts, or a refusal."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.config.tiktoken_file import TiktokenVocabulary, read_tiktoken_file
from megatron_fwpkm.conversion import tokenizer_export
from megatron_fwpkm.conversion.byte_tokenizer_export import byte_backend, class_difference, tiktoken_backend
from megatron_fwpkm.conversion.export import export, hf_model_from_checkpoint, load_for_text
from megatron_fwpkm.conversion.tokenizer_export import save_tokenizer
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer
from megatron_fwpkm.evaluation.model_loading import load_tokenizer
from megatron_fwpkm.hf.generation import Sampling, continue_text
from tests.layers.megatron import initialize
from tests.quick_cases import examples

from ..checkpoint.contents import write_checkpoint

tiktoken = pytest.importorskip("tiktoken", reason="the extra [data] is not installed")
BYTES = [bytes([byte]) for byte in range(256)]
MERGED = [
    "th", "the", " the", "in", "ing", " t", "</", "s>", "  ", "    ", "12", "\n\n", "é", " é", "漢", "ab", "cab", "abc",
]  # fmt: skip
"""Some are out of reach of merges: found as whole words only."""
FLAGS = ("--tokenizer-type", "TikTokenizer", "--tiktoken-num-special-tokens", "10")
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from([*MERGED, "</s>", "<s>", "<unk>", "<SPECIAL_7>", "\x00", "\u00a0", "\u3000", "\r\n", "'s"]),
        st.text(" \t\n\r", max_size=12),
        st.text("0123456789.,", max_size=8),
        st.text("abc", max_size=12),
    ),
    max_size=8,
).map("".join)
IDS = st.lists(st.integers(0, 255), max_size=30)
"""Bytes in any order, which mostly are no text."""


def write_ranks(path: Path, pieces: list[bytes]) -> Path:
    path.write_text("".join(f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces)))
    return path


def tik(path: Path, **changes: Any) -> DataConfig:
    options: dict[str, Any] = {"tiktoken_num_special_tokens": 10, "tokenizer_model": str(path)} | changes
    return DataConfig(tokenizer_type="TikTokenizer", **options)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ranks(tmp_path_factory.mktemp("ranks") / "ranks.tiktoken", BYTES + [text.encode() for text in MERGED])


@pytest.fixture(scope="module", params=["v1", pytest.param("v2", marks=pytest.mark.slow), "cut", "bytes"])
def pair(
    request: pytest.FixtureRequest, ranks: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """A tokenizer of training and what Transformers loads of its conversion."""
    if request.param == "bytes":
        data = DataConfig(tokenizer_type="ByteLevelTokenizer")
    elif request.param == "cut":
        data = tik(ranks, vocab_size=10 + 256 + 5)
    else:
        data = tik(ranks, tiktoken_pattern=request.param)
    tokenizer, folder = build_tokenizer(data), tmp_path_factory.mktemp("saved")
    save_tokenizer(tokenizer.path, data, folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder)


def test_ids_names_and_ends(pair: tuple[Tokenizer, PreTrainedTokenizerFast]) -> None:
    tokenizer, loaded = pair
    assert (loaded.eos_token_id, loaded.bos_token_id) == (tokenizer.eod, tokenizer.bos)
    assert len(loaded) == tokenizer.vocab_size and loaded.unk_token is None and loaded.eos_token == "</s>"
    for name, number in tokenizer.control_tokens().items():
        assert loaded.convert_tokens_to_ids(name) == number and tokenizer.encode(name) == loaded(name).input_ids
    ids = tokenizer.encode("the end")
    assert loaded.decode([tokenizer.bos, *ids, tokenizer.eod], skip_special_tokens=True) == "the end"
    assert loaded.decode([*ids, tokenizer.eod]) == "the end</s>"


@examples(100, 300)
@given(text=TEXTS, ids=IDS)
def test_every_text_has_the_same_ids(
    pair: tuple[Tokenizer, PreTrainedTokenizerFast], text: str, ids: list[int]
) -> None:
    tokenizer, loaded = pair
    ours = tokenizer.encode(text)
    assert loaded(text).input_ids == ours
    assert loaded.decode(ours) == text == tokenizer.decode(ours)
    first = len(tokenizer.control_tokens())
    torn = [first + number for number in ids]
    assert loaded.decode(torn, skip_special_tokens=True) == tokenizer.decode(torn)


def test_long_words_are_cut_alike(pair: tuple[Tokenizer, PreTrainedTokenizerFast]) -> None:
    """tiktoken merges words of 100 bytes and more with another algorithm."""
    tokenizer, loaded = pair
    for text in ("abc" * 70, "cab" * 70 + "é" * 200, " " * 999 + "x", "the" * 99 + "ing", "漢" * 150, "\n" * 301):
        assert loaded(text).input_ids == tokenizer.encode(text)


@examples(60, 200)
@given(
    st.lists(st.text("abc", min_size=2, max_size=6).map(str.encode), max_size=25, unique=True),
    st.randoms(use_true_random=False),
    st.lists(st.text("abc", max_size=20), min_size=5, max_size=9),
)
def test_any_ranks_whatever_their_order(pieces: list[bytes], draw: Any, texts: list[str]) -> None:
    """Ranks that no training gives: joins in several ways, pieces before their parts, pieces without parts."""
    pieces = [*BYTES, *pieces]
    draw.shuffle(pieces)
    vocabulary = TiktokenVocabulary(("</s>",), tuple(pieces), r"\w+|\W+")
    backend = tiktoken_backend(vocabulary)
    encoding = tiktoken.Encoding(
        "any", pat_str=vocabulary.pattern, mergeable_ranks=vocabulary.piece_ids(), special_tokens={}
    )
    for text in [*texts, "".join(texts) * 3]:
        assert backend.encode(text, add_special_tokens=False).ids == encoding.encode_ordinary(text), (text, pieces)


def test_both_libraries_know_the_same_characters(ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The releases that the tests run with; others are refused at the export."""
    for pattern in ("v1", "v2"):
        assert class_difference(read_tiktoken_file(ranks, tik(ranks, tiktoken_pattern=pattern)).pattern) is None
    monkeypatch.setattr("tokenizers.Regex", lambda pattern: Regex(pattern.replace(r"\p{Lt}", r"\p{Lu}")))
    with pytest.raises(ValueError, match=r"tiktoken [\d.]+ and tokenizers [\d.]+ have different .* for \\p\{Lt\};"):
        save_tokenizer(ranks, tik(ranks), ranks.parent)


def test_what_cannot_be_converted_is_refused(ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_ranks(tmp_path / "whole", [*BYTES, b"the", b"quickly"])
    for name in ("the", "\u00c3", "-->"):  # a piece; how the byte C3 is spelled; a word, where merges do not give all
        data = tik(whole, tiktoken_special_tokens=("</s>", name))
        with pytest.raises(ValueError, match=f"--tiktoken-special-tokens {name}: a text can contain .* --no-tokenizer"):
            save_tokenizer(whole, data, tmp_path)
    monkeypatch.setattr(tokenizer_export, "tiktoken_backend", lambda _: byte_backend())
    with pytest.raises(ValueError, match="ranks.tiktoken cannot be converted exactly: .* --no-tokenizer"):
        save_tokenizer(ranks, tik(ranks), tmp_path)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ValueError, match="a TikTokenizer requires the package tiktoken, which is not installed: pip"):
        save_tokenizer(ranks, tik(ranks), tmp_path)


@pytest.fixture(scope="module", params=[pytest.param("TikTokenizer", marks=pytest.mark.slow), "ByteLevelTokenizer"])
def checkpoint(request: pytest.FixtureRequest, ranks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's --save folder. The copy of ranks is named as Llama names them, which is SentencePiece's name too."""
    initialize()
    root = tmp_path_factory.mktemp("run")
    if request.param == "ByteLevelTokenizer":
        write_checkpoint(root, 258, 320, None, ("--tokenizer-type", "ByteLevelTokenizer"))
    else:
        named = root / "llama.model"
        named.write_bytes(ranks.read_bytes())
        size = 10 + 256 + len(MERGED)
        write_checkpoint(root, size, 320, named, (*FLAGS, "--tokenizer-model", str(ranks)))
    return root


@pytest.mark.slow
def test_an_export_carries_it(checkpoint: Path, tmp_path: Path) -> None:
    folder = export(checkpoint, tmp_path / "hf")
    assert {path.name for path in folder.glob("tokenizer*")} == {"tokenizer.json", "tokenizer_config.json"}
    text = "the </s> ing \u00e9 12"
    ids = load_tokenizer(checkpoint).encode(text)
    code = (
        "import sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]); "
        "print(t(sys.argv[2]).input_ids, [t.bos_token_id, t.eos_token_id])"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), text], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    model, tokenizer = load_for_text(folder, "cpu")
    special = [model.config.bos_token_id, model.config.eos_token_id]
    assert done.stdout.endswith(f"{ids} {special}\n"), done.stderr[-3000:]
    assert not list((tmp_path / "home").rglob("*.py"))
    other, converted = load_for_text(checkpoint, "cpu")
    answers = [
        continue_text(one, two, text, Sampling(12)) for one, two in ((model, tokenizer), (other, converted))
    ]
    assert answers[0] == answers[1] and load_tokenizer(folder).encode(text) == ids
    assert load_tokenizer(folder).eod == special[1] == load_tokenizer(checkpoint).eod


def test_it_is_left_out_when_told(checkpoint: Path, tmp_path: Path) -> None:
    folder = export(checkpoint, tmp_path / "hf", tokenizer=False)
    assert not list(folder.glob("tokenizer*")) and hf_model_from_checkpoint(folder)[1] is None
    assert hf_model_from_checkpoint(checkpoint, tokenizer=False)[1] is None
