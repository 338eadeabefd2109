"""What stands around documents in training stands around texts of an export; and every export can pad."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, GenerationConfig, PreTrainedTokenizerFast

from megatron_fwpkm.checkpoint.record import read_record, write_record
from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.conversion.export import checkpoint_contents, export, load_for_text
from megatron_fwpkm.conversion.exported_config import hf_config
from megatron_fwpkm.conversion.special_tokens import choose_pad
from megatron_fwpkm.conversion.tokenizer_export import convert_tokenizer
from megatron_fwpkm.conversion.verify import verify
from tests.layers.megatron import initialize

from ..checkpoint.contents import write_checkpoint
from .test_export_folder import IDENTITY, novel, train

TEXT = "It is a truth"


@pytest.fixture(autouse=True)
def parallel_state() -> None:
    initialize()


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train(novel(), **IDENTITY))
    return path


def with_documents(root: Path, **marks: bool | None) -> Path:
    """The checkpoint's record says this of its documents."""
    folder = next(root.glob("iter_*"))
    write_record(folder, replace(read_record(folder), documents=marks))
    return root


@pytest.mark.parametrize("prepend_bos", [True, False, pytest.param(None, marks=pytest.mark.slow)])
def test_texts_begin_as_documents_of_training_did(
    prepend_bos: bool | None, tokenizer_file: Path, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "run", 500, 512, tokenizer_file)
    with_documents(tmp_path / "run", prepend_bos=prepend_bos, append_eod=True)
    folder = export(tmp_path / "run", tmp_path / "hf")
    ids = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file)).encode(TEXT)
    begin = [1] if prepend_bos else []
    for tokenizer in (
        AutoTokenizer.from_pretrained(folder),
        load_for_text(folder)[1],
        load_for_text(tmp_path / "run")[1],
    ):
        assert tokenizer(TEXT).input_ids == begin + ids
        assert tokenizer(TEXT, add_special_tokens=False).input_ids == ids
        assert tokenizer.decode(tokenizer(TEXT).input_ids, skip_special_tokens=True) == TEXT


def test_verify_compares_how_texts_begin(
    tokenizer_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tokenizer without the BOS of training, or another pad token, fails; a checkpoint that says nothing is named."""
    write_checkpoint(tmp_path / "run", 500, 512, tokenizer_file)
    export(tmp_path / "run", tmp_path / "old")
    assert "iter_0000007 does not say whether the training documents began with BOS (an earlier version" in caplog.text
    caplog.clear()
    with_documents(tmp_path / "run", prepend_bos=True)
    export(tmp_path / "run", tmp_path / "hf")
    assert "BOS" not in caplog.text
    name = "special tokens (BOS, EOS, padding)"
    for folder, fits in ((tmp_path / "hf", True), (tmp_path / "old", False)):
        checks = {check.name: check for check in verify(tmp_path / "run", folder, lengths=[1])}
        assert checks[name].passed == fits and all(check.passed for check in checks.values() if check.name != name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(tmp_path / "hf")
    assert not {check.name: check for check in verify(tmp_path / "run", tmp_path / "hf", lengths=[1])}[name].passed


def test_a_tokenizer_that_adds_tokens_is_taken_over_without_them(tokenizer_file: Path, tmp_path: Path) -> None:
    """Training never added what a Hugging Face tokenizer adds by itself, but BOS with --prepend-bos."""
    made = convert_tokenizer(tokenizer_file, DataConfig())
    assert made is not None
    plain = made(TEXT).input_ids
    made.add_bos_token, made.add_eos_token = True, True
    assert made(TEXT).input_ids == [1, *plain, 2]
    made.save_pretrained(tmp_path / "theirs")
    for add_bos in (False, True):
        ours = convert_tokenizer(
            tmp_path / "theirs", DataConfig(tokenizer_type="HuggingFaceTokenizer"), add_bos=add_bos
        )
        assert ours is not None
        ours.save_pretrained(tmp_path / "ours")
        for tokenizer in (ours, AutoTokenizer.from_pretrained(tmp_path / "ours")):
            assert tokenizer(TEXT).input_ids == ([1] if add_bos else []) + plain
    made.bos_token = None
    made.save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="none has no BOS token, but the training documents began with one"):
        convert_tokenizer(tmp_path / "none", DataConfig(tokenizer_type="HuggingFaceTokenizer"), add_bos=True)


KINDS: dict[str, tuple[dict[str, Any], bool, str]] = {
    "its own": ({"pad_id": 3}, False, "<pad>"),
    "its own among control symbols": ({"control_symbols": ["<pad>"]}, False, "<pad>"),
    "unknown, which bytes make needless": ({}, False, "<unk>"),
    "no BOS": ({"bos_id": -1}, False, "<unk>"),
    "documents begin with BOS": ({}, True, "<unk>"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_export_can_pad(kind: str, tmp_path: Path) -> None:
    """With one id in all three places, and none that training did not have."""
    options, bos_occurs, expected = KINDS[kind]
    (tmp_path / "tokenizer.model").write_bytes(train(novel(), **IDENTITY | options))
    write_checkpoint(tmp_path / "run", 500, 512, tmp_path / "tokenizer.model")
    with_documents(tmp_path / "run", prepend_bos=bos_occurs)
    folder = export(tmp_path / "run", tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token == expected and len(tokenizer) == 500
    config = json.loads((folder / "config.json").read_text())
    generation = GenerationConfig.from_pretrained(folder)
    assert config["pad_token_id"] == generation.pad_token_id == tokenizer.pad_token_id
    assert (config["bos_token_id"], config["eos_token_id"]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    rows = [tokenizer(text) for text in (TEXT, "It")]
    for row in rows:
        row["input_ids"].append(tokenizer.eos_token_id)
        row["attention_mask"].append(1)
    labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": row.input_ids} for row in rows])[
        "labels"
    ]
    assert int((labels == tokenizer.eos_token_id).sum()) == 2, "the ends of texts are learned"


def test_the_last_resort_is_the_end_of_texts() -> None:
    assert choose_pad(None, 0, 1, 2, unk_occurs=True, bos_occurs=False) == 1
    assert choose_pad(None, None, None, 2, unk_occurs=True, bos_occurs=True) == 2
    assert choose_pad(None, None, 1, 2, unk_occurs=True, bos_occurs=True) == 2
    assert choose_pad(None, 0, 1, 2, unk_occurs=True, bos_occurs=True) == 0
    assert choose_pad(None, None, None, None, unk_occurs=True, bos_occurs=True) is None


def test_numbers_end_with_the_last_id(tmp_path: Path) -> None:
    """The id after the last number ends documents of a NullTokenizer."""
    write_checkpoint(tmp_path, 61, 64, None, ("--tokenizer-type", "NullTokenizer", "--vocab-size", "60"))
    config = hf_config(checkpoint_contents(tmp_path), "initial")
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (60, 60, None)


def test_bytes_pad_with_the_beginning_of_sequence() -> None:
    made = convert_tokenizer(None, DataConfig(tokenizer_type="ByteLevelTokenizer"))
    assert isinstance(made, PreTrainedTokenizerFast) and made.pad_token_id == 257
    made = convert_tokenizer(None, DataConfig(tokenizer_type="ByteLevelTokenizer"), add_bos=True)
    assert made is not None and made("a").input_ids == [257, 97] and made.pad_token_id == 256
