"""RULER of lm-evaluation-harness and ours: the same prompts get the same answers, and these the same scores."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")
pytest.importorskip("scipy", reason="the harness's RULER needs scipy")

import torch
from lm_eval.api.instance import Instance
from transformers import AutoTokenizer

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.conversion.hf_folder import write_model
from megatron_fwpkm.conversion.tokenizer_export import save_tokenizer
from megatron_fwpkm.data.tokenizers import build_tokenizer
from megatron_fwpkm.evaluation.harness.harness_model import FwPKMHarnessModel
from megatron_fwpkm.evaluation.ruler.answer_scores import answer_score
from megatron_fwpkm.evaluation.ruler.prompt_reader import PromptReader
from megatron_fwpkm.evaluation.ruler.ruler_tasks import RULER_TASKS
from megatron_fwpkm.evaluation.text_model import text_model
from tests.hf.builders import small_model

pytestmark = pytest.mark.slow
BUDGET = RULER_TASKS["fwe"].budget


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model over bytes with random weights, as `export` writes it."""
    folder = tmp_path_factory.mktemp("export")
    tokenizer = save_tokenizer(None, DataConfig(tokenizer_type="ByteLevelTokenizer"), folder)
    assert tokenizer is not None
    model = small_model(
        dtype=torch.float32, vocab_size=264, bos_token_id=257, eos_token_id=256, pad_token_id=tokenizer.pad_token_id
    )
    write_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def documents(export: Path) -> list[dict[str, Any]]:
    """The harness's own samples of frequent words; its other tasks need a tokenizer with more text per token."""
    frequent_words = importlib.import_module("lm_eval.tasks.ruler.fwe_utils")
    found: list[dict[str, Any]] = frequent_words.sys_kwext(AutoTokenizer.from_pretrained(export), 1024, num_samples=3)
    return found


def test_prompts_get_the_same_answers(export, documents):
    harness = FwPKMHarnessModel(str(export), device="cpu", batch_size=1, dtype="float64")
    contexts = [f"{document['input']} {document['gen_prefix']}" for document in documents]
    wanted = {"until": [], "max_gen_toks": BUDGET, "do_sample": False}
    asked = [
        Instance("generate_until", {}, (text, wanted), number, ("fwe", number, 1))
        for number, text in enumerate(contexts)
    ]
    tokenizer = build_tokenizer(DataConfig(tokenizer_type="ByteLevelTokenizer"))
    reader = PromptReader(text_model(harness.model), tokenizer.vocab_size, tokenizer.eod)
    ours = [reader.answer(np.asarray(harness.tok_encode(text)), BUDGET, "on") for text in contexts]
    assert [tokenizer.decode(tokens) for tokens in ours] == harness.generate_until(asked)
    assert any(ours)


def test_answers_get_the_same_scores(documents):
    scoring = importlib.import_module("lm_eval.tasks.ruler.common_utils")
    for document in documents:
        answers = document["outputs"]
        for text in ("", " ".join(answers), answers[1].upper(), f"{answers[0]}\x00{answers[2]}", "neither"):
            theirs = scoring.process_results(document, [text])[str(document["max_length"])]
            assert answer_score(text, answers, "all") == pytest.approx(theirs)
