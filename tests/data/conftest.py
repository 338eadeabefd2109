"""A small tokenizer of real text and datasets made with it."""

from __future__ import annotations

import gzip
import io
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.indexed.indexed_format import IndexedWriter, token_dtype
from megatron_fwpkm.data.tokenizers import Tokenizer, build_tokenizer

ROOT = Path(__file__).resolve().parents[2]
WriteDataset = Callable[..., str]


def novel(characters: int = 120_000) -> str:
    """The beginning of a novel of the quickstart's corpus."""
    with gzip.open(ROOT / "examples/quickstart/corpus/persuasion.txt.gz", "rt", encoding="utf-8") as stream:
        return stream.read(characters)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of 900 pieces with enough whole words for facts."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    blob = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(novel().split("\n")),
        model_writer=blob,
        vocab_size=900,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path.write_bytes(blob.getvalue())
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    """The tokenizer of `tokenizer_file`."""
    return build_tokenizer(DataConfig(tokenizer_model=str(tokenizer_file)))


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    """`write_dataset(name, documents, tokenizer)` writes lists of ids as a dataset and returns its prefix."""

    def write(name: str, documents: Sequence[Sequence[int]], tokenizer: Tokenizer) -> str:
        prefix = tmp_path / name
        dtype = token_dtype(tokenizer.vocab_size)
        with IndexedWriter(prefix, dtype) as writer:
            for document in documents:
                writer.append(np.array(document, dtype).tobytes(), array("i", [len(document)]))
            made = {"type": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "identity": tokenizer.identity}
            writer.publish({"tokenizer": made})
        return str(prefix)

    return write
