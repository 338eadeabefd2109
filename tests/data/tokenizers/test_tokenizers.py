"""Tokenizers: text stays text, documents can be ended, and the identity follows the ids."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer

from ..conftest import novel


@pytest.fixture(scope="module")
def hugging_face_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 700 pieces in the form Transformers saves."""
    folder = tmp_path_factory.mktemp("hf")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(novel().split("\n"), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, "bos_token": "<s>"}))
    return folder


def hugging_face(folder: Path) -> Tokenizer:
    return build_tokenizer(DataConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder)))


@pytest.mark.parametrize(
    "text", ["a </s> b", "<s>", "<unk>x", "tab\tand  spaces \n\n end ", "\u4f60\u597d \U0001f600 \x00", ""]
)
def test_text_comes_back_and_holds_no_control_tokens(
    tokenizer: Tokenizer, hugging_face_folder: Path, text: str
) -> None:
    for kind in (tokenizer, hugging_face(hugging_face_folder)):
        ids = kind.encode(text)
        assert kind.decode(ids) == text
        assert not {kind.eod, kind.bos} & set(ids)
        assert all(0 <= token < kind.vocab_size for token in ids)


def test_special_ids(tokenizer: Tokenizer, hugging_face_folder: Path) -> None:
    assert (tokenizer.eod, tokenizer.bos, tokenizer.vocab_size) == (2, 1, 900)
    other = hugging_face(hugging_face_folder)
    assert (other.eod, other.bos, other.vocab_size) == (1, 0, 700)
    assert other.decode([other.eod]) == tokenizer.decode([tokenizer.eod]) == ""


def test_whole_words_are_one_piece_inside_a_sentence(tokenizer: Tokenizer, hugging_face_folder: Path) -> None:
    for kind in (tokenizer, hugging_face(hugging_face_folder)):
        words = kind.whole_words()
        assert len(words) > 48 and len(set(words)) == len(words)
        assert all(word.isalpha() and word.islower() and len(word) >= 4 for word in words)
        before = kind.encode("The")
        assert all(len(kind.encode(f"The {word}")) == len(before) + 1 for word in words)


def test_identity_is_of_the_content(tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.model"
    copy.write_bytes(tokenizer_file.read_bytes())
    assert build_tokenizer(DataConfig(tokenizer_model=str(copy))).identity == tokenizer.identity
    null = [build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=size)) for size in (10, 11)]
    assert len({tokenizer.identity, null[0].identity, null[1].identity}) == 3
    assert tokenizer.unique_identifiers["identity"] == tokenizer.identity


def test_null_tokenizer_reads_numbers() -> None:
    null = build_tokenizer(DataConfig(tokenizer_type="NullTokenizer", vocab_size=10))
    assert null.encode("1 2  9") == [1, 2, 9]
    assert null.decode([3, 4, 10]) == "3 4"
    assert (null.vocab_size, null.eod, null.path) == (11, 10, None)
    with pytest.raises(ValueError, match=r"outside 0\.\.9"):
        null.encode("10")
    with pytest.raises(ValueError, match="expects numbers separated by spaces"):
        null.encode("one")


def test_lone_surrogates_are_refused(tokenizer: Tokenizer, hugging_face_folder: Path) -> None:
    for kind in (tokenizer, hugging_face(hugging_face_folder)):
        with pytest.raises(ValueError, match="lone surrogate at character 1: not valid Unicode"):
            kind.encode("a\ud800b")


def test_decoding_checks_ids(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 899, but range from 900 to 900"):
        tokenizer.decode([900])


def test_wrong_tokenizers_are_refused(tokenizer_file: Path, hugging_face_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.model"
    text.write_text("no model")
    (tmp_path / "empty").mkdir()
    bare, torn = tmp_path / "bare", tmp_path / "torn"
    for folder in (bare, torn):
        folder.mkdir()
        (folder / "tokenizer.json").write_bytes((hugging_face_folder / "tokenizer.json").read_bytes())
    (torn / "tokenizer_config.json").write_text("{torn")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("{}")
    kind = "HuggingFaceTokenizer"
    cases: list[tuple[DataConfig, str]] = [
        (DataConfig(), "needs --tokenizer-model"),
        (DataConfig(tokenizer_model=str(tmp_path / "absent")), "does not exist; train one with"),
        (DataConfig(tokenizer_model=str(text)), "is not a SentencePiece model"),
        (
            DataConfig(tokenizer_model=str(tmp_path / "empty")),
            r"is a folder; SentencePieceTokenizer expects a \.model file",
        ),
        (
            DataConfig(tokenizer_model=str(tokenizer_file), vocab_size=1000),
            "--vocab-size 1000 differs from the vocabulary size 900 of",
        ),
        (DataConfig(tokenizer_type=kind, tokenizer_model="gpt2"), r"folder that contains .* \(nothing is downloaded\)"),
        (DataConfig(tokenizer_type=kind, tokenizer_model=str(tmp_path / "empty")), "contains no tokenizer.json"),
        (DataConfig(tokenizer_type=kind, tokenizer_model=str(bare)), "tokenizer.json has no eos_token"),
        (DataConfig(tokenizer_type=kind, tokenizer_model=str(torn)), r"config\.json .* is not a JSON object: Exp"),
        (DataConfig(tokenizer_type=kind, tokenizer_model=str(broken)), "is not a Hugging Face tokenizer"),
        (DataConfig(tokenizer_type="NullTokenizer"), "requires --vocab-size"),
        (DataConfig(tokenizer_type="NullTokenizer", vocab_size=0), "--vocab-size 0 must be at least 1"),
    ]
    for data, message in cases:
        with pytest.raises(ValueError, match=message):
            build_tokenizer(data)


def test_a_model_without_end_of_document_is_refused(tmp_path: Path) -> None:
    blob = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words here"] * 9),
        model_writer=blob,
        vocab_size=20,
        model_type="bpe",
        eos_id=-1,
        minloglevel=2,
    )
    path = tmp_path / "no_eos.model"
    path.write_bytes(blob.getvalue())
    with pytest.raises(ValueError, match="has no </s> piece"):
        build_tokenizer(DataConfig(tokenizer_model=str(path)))
