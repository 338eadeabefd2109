"""lm-evaluation-harness itself with an export: the model class of this package, and the harness's own."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.conversion.hf_folder import write_model
from megatron_fwpkm.conversion.tokenizer_export import save_tokenizer
from megatron_fwpkm.evaluation.harness.harness_model import FwPKMHarnessModel
from tests.conftest import ROOT
from tests.hf.builders import small_model

pytestmark = pytest.mark.slow

TEXTS = ["a book of many words, " * 4, "short", "neither long nor short. " * 3, "", "a book, read again: " * 9]
CONTEXTS = [
    ("the first letter is", " a"),
    ("x", " and much more than that follows here"),
    (TEXTS[0].strip(), " b"),
    ("", "c d"),
]
EXACT: dict[str, Any] = {"device": "cpu", "batch_size": 1, "dtype": "float64"}
"""In float64 no near-tie of a memory's selection tips to another side on another CPU."""
GENERATION = {"until": ["q"], "max_gen_toks": 12, "do_sample": False}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model over bytes with chunks of 8 and windows of 6, as `export` writes it."""
    folder = tmp_path_factory.mktemp("export")
    tokenizer = save_tokenizer(None, DataConfig(tokenizer_type="ByteLevelTokenizer"), folder)
    assert tokenizer is not None
    model = small_model(
        dtype=torch.float32, vocab_size=264, bos_token_id=257, eos_token_id=256, pad_token_id=tokenizer.pad_token_id
    )
    write_model(model, folder)
    return folder


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    """What the harness asks a model."""
    return [Instance(kind, {}, one, number, ("test", number, 1)) for number, one in enumerate(arguments)]


def ours(export: Path, **options: Any) -> FwPKMHarnessModel:
    """The class of this package."""
    return FwPKMHarnessModel(str(export), **{**EXACT, **options})


def theirs(export: Path, **options: Any) -> HFLM:
    """The harness's own class, with the code in the export."""
    return HFLM(str(export), trust_remote_code=True, **{**EXACT, **options})


def test_answers_do_not_depend_on_the_batch(export):
    asked = requests("loglikelihood", CONTEXTS)
    alone = ours(export).loglikelihood(asked)
    together = ours(export, batch_size=4).loglikelihood(asked)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], rel=1e-9)
    assert theirs(export, batch_size=4).loglikelihood(asked) == together

    model = ours(export)
    for (context, continuation), (value, _) in zip(CONTEXTS, alone, strict=True):
        before = model.tok_encode(context) or [model.prefix_token_id]
        tokens = before + model.tok_encode(continuation)
        with torch.no_grad():
            logits = model.model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
        expected = sum(float(logits[place - 1, tokens[place]]) for place in range(len(before), len(tokens)))
        assert value == pytest.approx(expected, rel=1e-9)


def test_the_memory_of_a_document_is_carried_and_then_reset(export):
    asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    together = ours(export, batch_size=4, segment=16).loglikelihood_rolling(asked)
    backwards = ours(export, segment=1000).loglikelihood_rolling(asked[::-1])[::-1]
    assert together == pytest.approx(backwards, rel=1e-9)
    assert theirs(export).loglikelihood_rolling(asked) == pytest.approx(together, rel=1e-9)  # in one window of 2,048

    cut = theirs(export, max_length=32).loglikelihood_rolling(asked)
    assert cut[1] == pytest.approx(together[1], rel=1e-9)
    assert abs(cut[4] - together[4]) > 1e-2, "the harness's own windows carry no memory"
    off = ours(export, memory="off").loglikelihood_rolling(asked)
    assert abs(off[4] - together[4]) > 1e-2


def test_generated_text_does_not_depend_on_the_batch(export):
    asked = requests("generate_until", [(context, GENERATION) for context in [*TEXTS[:3], "another one"]])
    alone = ours(export).generate_until(asked)
    assert ours(export, batch_size=4).generate_until(asked) == alone
    assert theirs(export, batch_size=4).generate_until(asked) == alone
    assert any(alone)


def test_requests_share_no_memory_where_the_export_says_so(export, tmp_path):
    folder = tmp_path / "shared"
    shutil.copytree(export, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "memory": "shared"}))
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "memory": "shared"}))

    asked = requests("generate_until", [(context, GENERATION) for context in TEXTS[:3]])
    assert ours(folder, batch_size=4).generate_until(asked) == ours(export).generate_until(asked)
    asked = requests("loglikelihood", CONTEXTS)
    assert ours(folder, batch_size=4).loglikelihood(asked) == ours(export, batch_size=4).loglikelihood(asked)


def test_nothing_of_a_context_is_cut_off_without_a_limit(export):
    assert ours(export).max_length > 10**9
    assert ours(export, max_length=64).max_length == 64
    with pytest.raises(ValueError, match="batch_size=auto tries a text of max_length"):
        ours(export, batch_size="auto")
    with pytest.raises(ValueError, match="segment=0 must be at least 1"):
        ours(export, segment=0)


TASKS = {
    "local_choice": (
        "multiple_choice", "acc", "doc_to_text: '{{text}}'\ndoc_to_choice: ['a', ' the longer one']\ndoc_to_target: 0"
    ),
    "local_document": ("loglikelihood_rolling", "byte_perplexity", "doc_to_text: ''\ndoc_to_target: '{{text}}'"),
    "local_answer": (
        "generate_until", "exact_match",
        "doc_to_text: '{{text}}'\ndoc_to_target: 'x'\ngeneration_kwargs: {until: ['q'], max_gen_toks: 6}",
    ),
}  # fmt: skip


def test_the_command_line_with_local_tasks(export, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    texts = [text for text in TEXTS if text]
    (tasks / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, (kind, metric, rest) in TASKS.items():
        (tasks / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tasks / 'texts.jsonl'}}}}}\n"
            f"test_split: test\noutput_type: {kind}\nmetric_list: [{{metric: {metric}}}]\n{rest}\n"
        )
    command = [
        sys.executable, "-m", "megatron_fwpkm.evaluation.harness", "run", "--model", "fwpkm", "--model_args",
        f"pretrained={export},memory=on,dtype=float64", "--tasks", ",".join(TASKS), "--include_path", str(tasks),
        "--device", "cpu", "--batch_size", "4", "--output_path", str(tmp_path / "output"),
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "output").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]
    assert found.keys() == set(TASKS)
    read = ours(export).loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]))
    expected = math.exp(-sum(read) / sum(len(text) for text in texts))
    assert found["local_document"]["byte_perplexity,none"] == pytest.approx(expected, rel=1e-9)
