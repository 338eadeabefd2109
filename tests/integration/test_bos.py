"""--prepend-bos in preparation reaches the export's tokenizer and the needle evaluation, through the tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import pretrain
from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.config.cli import run_cli
from megatron_fwpkm.conversion.tokenizer_export import save_tokenizer
from megatron_fwpkm.evaluation.model_loading import load_model
from tests.checkpoint.contents import TINY_FLAGS
from tests.conversion.test_export_folder import IDENTITY, novel, train
from tests.layers.megatron import initialize
from tests.tools.in_process import run_tool


@pytest.mark.parametrize(
    ("kind", "prepend"), [("SentencePiece", True), ("SentencePiece", False), ("HuggingFace", True)]
)
def test_bos_of_preparation_begins_texts_of_the_export(
    kind: str, prepend: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Hugging Face tokenizer is named by its file; the names of its special tokens stand in another beside it."""
    file = tmp_path / "t.model"
    file.write_bytes(train(novel(), **IDENTITY))
    if kind == "HuggingFace":
        save_tokenizer(file, DataConfig(), tmp_path)
        file = tmp_path / "tokenizer.json"
    (tmp_path / "text.txt").write_text("\n\n".join(novel()[:400]))
    words = ["--tokenizer-type", f"{kind}Tokenizer", "--tokenizer-model", file]
    prepared = run_tool(
        capsys, "preprocess_data", "--input", tmp_path / "text.txt", "--txt-documents", "paragraph", "--output-prefix",
        tmp_path / "data", "--append-eod", *words, *(["--prepend-bos"] if prepend else []),
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    run = [
        *TINY_FLAGS, *map(str, words), "--data-path", str(tmp_path / "data_text_document"), "--train-iters", "1",
        "--eval-iters", "0", "--save", str(tmp_path / "run"), "--num-threads", "1",
    ]  # fmt: skip
    assert run_cli(pretrain.main, run) == 0
    torch.use_deterministic_algorithms(False)
    initialize()
    assert "BOS" not in "".join(capsys.readouterr())
    assert read_checkpoint(tmp_path / "run").documents == {"prepend_bos": prepend, "append_eod": True}
    exported = run_tool(
        capsys, "convert_checkpoint", "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf"
    )
    assert exported == (0, f"exported to {tmp_path / 'hf'}\n", "")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer("It is").input_ids[:1] == [1] if prepend else tokenizer("It is").input_ids[:1] != [1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == 2
    for place in ("run", "hf"):
        assert load_model(str(tmp_path / place), "cpu").bos == (1 if prepend else None)
