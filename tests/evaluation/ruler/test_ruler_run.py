"""RULER from settings to files, with a model whose answers are known."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_fwpkm.data.tokenizers import Tokenizer
from megatron_fwpkm.evaluation.causality_verdict import CausalityCheck
from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.model_loading import LoadedModel
from megatron_fwpkm.evaluation.ruler import run as ruler_run
from megatron_fwpkm.evaluation.ruler.answer_scores import answer_score, cleaned
from megatron_fwpkm.evaluation.ruler.published_rows import PUBLISHED_ROWS
from megatron_fwpkm.evaluation.ruler.ruler_evaluator import SampleShelf
from megatron_fwpkm.evaluation.ruler.ruler_record import RulerItem, RulerRecord
from megatron_fwpkm.evaluation.ruler.ruler_results import MEAN, RulerResults, ScoreRow, effective_sentence
from megatron_fwpkm.evaluation.ruler.ruler_settings import RulerSettings
from megatron_fwpkm.evaluation.ruler.run import evaluate_ruler
from megatron_fwpkm.evaluation.ruler.source_files import load_sources
from tests.evaluation.ruler.ruler_data import ruler_data
from tests.tools.in_process import run_tool

TASKS = ("niah_single_1", "niah_multivalue", "vt", "fwe", "qa_1")
LENGTH, SAMPLES = 2048, 2


class QuarterTokenizer(Tokenizer):
    """Four letters are a token."""

    def __init__(self) -> None:
        super().__init__("quarters", None, 12000, 0, None, [b"quarters"])
        self.pieces = [""]
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        found = []
        for start in range(0, len(text), 4):
            if (piece := text[start : start + 4]) not in self.ids:
                self.ids[piece] = len(self.pieces)
                self.pieces.append(piece)
            found.append(self.ids[piece])
        assert len(self.pieces) < self.vocab_size
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[number] for number in ids)

    def whole_words(self) -> list[str]:
        return []


class ScriptedModel:
    """Knows every prompt: says all answers with its memory on, the first half while it is frozen, nothing else."""

    def __init__(self, tokenizer: Tokenizer, answers: dict[tuple[int, ...], tuple[str, ...]]) -> None:
        self.config = SimpleNamespace(memory_layers=[0], to_dict=lambda: {"model_type": "scripted"})
        self.memory_mode = "on"
        self.tokenizer, self.answers = tokenizer, answers
        self.left = -1

    def new_cache(self) -> list[Any]:
        return []

    def parameters(self):
        return iter([torch.zeros(1)])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.zeros(1)}

    def __call__(self, input_ids, past_key_values, use_cache, logits_to_keep=0):
        tokens = input_ids[0].tolist()
        past_key_values += tokens
        shown = tokens[-1:] if logits_to_keep else tokens
        logits = torch.zeros(1, len(shown), self.tokenizer.vocab_size + 3)
        logits[0, :, -1] = 9.0  # padding of the embedding, which is never an answer
        logits[0, range(len(shown)), shown] = 0.5  # so that the causality check sees its change
        if (answers := self.answers.get(tuple(past_key_values))) is not None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            said = {"on": len(answers), "frozen": len(answers) // 2, "off": 0}[self.memory_mode]
            past_key_values.append(tuple(self.tokenizer.encode(" ".join(answers[:said]))))
        reply = next((item for item in past_key_values if isinstance(item, tuple)), None)
        if reply is not None:
            step = len(past_key_values) - 1 - past_key_values.index(reply)
            logits[0, -1, (*reply, self.tokenizer.eod)[step]] = 1.0
        return SimpleNamespace(logits=logits)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return QuarterTokenizer()


@pytest.fixture(scope="module")
def settings(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RulerSettings:
    place, data = tmp_path_factory.mktemp("ruler"), ruler_data()
    (place / "essay.txt").write_text(data["essay"])
    (place / "squad.json").write_text(json.dumps(data["squad"]))
    return RulerSettings(
        str(folder), (LENGTH,), TASKS, SAMPLES, haystack=(str(place / "essay.txt"),), sentences="marks",
        conditions=("on", "frozen", "off"), squad=str(place / "squad.json"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def answers(settings: RulerSettings, tokenizer: Tokenizer) -> dict[tuple[int, ...], tuple[str, ...]]:
    """What is asked, in tokens, and what is right."""
    shelf = SampleShelf(settings, lambda text: len(tokenizer.encode(text)), load_sources(settings))
    samples = [shelf.sample(task, LENGTH, index) for task in TASKS for index in range(SAMPLES)]
    return {tuple(tokenizer.encode(sample.prompt)): sample.answers for sample in samples}


@pytest.fixture
def model(tokenizer: Tokenizer, answers: Any) -> ScriptedModel:
    return ScriptedModel(tokenizer, answers)


@pytest.fixture
def load(model: ScriptedModel, tokenizer: Tokenizer) -> Callable[..., LoadedModel]:
    return lambda path, device: LoadedModel(model, tokenizer)  # type: ignore[arg-type]


def test_scores_of_a_model_with_known_answers(settings, load, model, tmp_path):
    results = evaluate_ruler(settings, RunOptions(tmp_path), load)
    scores = {
        condition: [round(results.find(condition, task, LENGTH).score, 1) for task in (*TASKS, MEAN)]
        for condition in results.conditions
    }
    # Half of 1, 4, 5, 3 and 2 answers, rounded down; any answer to a question counts.
    frozen = [0.0, 50.0, 40.0, 33.3, 100.0, 44.7]
    assert scores["on"] == [100.0] * 6 and scores["off"] == [0.0] * 6 and scores["frozen"] == frozen
    assert scores["never shown"] == [0.0] * 6
    assert results.effective_length("on") == LENGTH and results.effective_length("frozen") is None
    assert results.find("off", MEAN, LENGTH).empty == results.find("off", MEAN, LENGTH).samples == 10
    assert results.find("on", "vt", LENGTH).high == 100.0 and 30 < results.find("on", "vt", LENGTH).low < 40
    assert results.causality.passed
    assert results.counts[0].with_bos == results.counts[0].over_length == 0

    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()[1:]]
    assert [record["task"] for record in records] == [task for task in TASKS for _ in range(SAMPLES)]
    assert all(answer in records[2]["predictions"]["on"] for answer in records[2]["answers"])
    assert records[0]["predictions"]["off"] == "" and records[0]["generated"]["off"] == 0
    assert records[0]["other_answers"] == records[1]["answers"]
    page = (tmp_path / "report.html").read_text()
    assert "SDM, 8B" in page and "Effective length: 2,048 tokens" in page and "8 not measured" in page
    assert json.loads((tmp_path / "report_part.json").read_text())["name"] == "ruler"


def test_a_killed_run_continues_to_the_same_files(settings, load, model, tmp_path):
    settings = dataclasses.replace(settings, tasks=("niah_single_1", "vt"), conditions=("on", "off"))
    evaluate_ruler(settings, RunOptions(tmp_path / "whole"), load)
    model.left = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate_ruler(settings, RunOptions(tmp_path / "killed"), load)
    model.left = -1
    evaluate_ruler(settings, RunOptions(tmp_path / "killed"), load)
    for name in ("results.json", "results.csv", "scores.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ValueError, match="different evaluation .different: seed"):
        evaluate_ruler(dataclasses.replace(settings, seed=43), RunOptions(tmp_path / "killed"), load)


def test_a_beginning_of_text_is_counted(settings, model, tokenizer, answers, tmp_path):
    model.answers = {(5, *prompt): right for prompt, right in answers.items()}
    loaded = LoadedModel(model, tokenizer, bos=5)
    settings = dataclasses.replace(settings, tasks=("vt", "fwe"), conditions=("on",))
    results = evaluate_ruler(settings, RunOptions(tmp_path), lambda path, device: loaded)
    assert results.find("on", MEAN, LENGTH).score == 100
    assert results.counts[0].with_bos == 4 and results.counts[0].cut == 0


def test_the_effective_length_is_the_longest_above_the_threshold():
    def results(*scores: float, threshold: float = 85.6) -> RulerResults:
        lengths = tuple(1024 * 2**step for step in range(len(scores)))
        rows = tuple(
            ScoreRow("on", MEAN, length, score, 0, 100, 0, 0, 9) for length, score in zip(lengths, scores, strict=True)
        )
        settings = RulerSettings("model", lengths, effective_threshold=threshold)
        return RulerResults(settings, "", ("on",), ("vt",), {}, rows, (), CausalityCheck(1, True, True), {})

    assert results(90, 85.6, 80).effective_length("on") == 1024
    assert results(80, 90, 70).effective_length("on") == 2048
    assert results(85.6, 10).effective_length("on") is None
    assert results(50, 30, threshold=29).effective_length("on") == 2048
    assert "12 not measured" in effective_sentence(results(90))
    assert {row.mean for row in PUBLISHED_ROWS if row.model.startswith("SDM")} == {50.2, 31.2}


def test_answers_are_found_as_ruler_finds_them():
    assert cleaned(" \x00a\x07b \n") == "a\nb"
    assert answer_score("ONE two", ["one", "three"], "all") == 0.5
    assert answer_score("ONE two", ["one", "three"], "part") == 1.0
    assert answer_score("", ["one"], "all") == answer_score("on", ["one"], "part") == 0.0


def test_records_survive_their_line():
    record = RulerRecord(RulerItem("vt", 4096, 3), 4000, True, 0, ("A", "B"), ("C",), {"on": "A"}, {"on": 1}, 0.5)
    assert RulerRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert record.key == RulerItem("vt", 4096, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ("niah_single_9",)}, "--tasks 'niah_single_9' is not known"),
        ({"tasks": ("qa_2",)}, "--tasks qa_2 needs --hotpotqa, which is not given"),
        ({"lengths": (4096, 4096)}, "--lengths 4096 4096 must be one or more different numbers"),
        ({"conditions": ()}, "--conditions  must have at least one value"),
        ({"samples": 0}, "--samples 0 must be at least 1"),
        ({"effective_threshold": 101}, "--effective-threshold 101 must be between 0 and 100"),
    ],
)
def test_settings_that_cannot_be_measured(changes, words):
    with pytest.raises(ValueError, match=words):
        RulerSettings(**{"model": "model", "lengths": (4096,), **changes})


def test_files_that_cannot_be_used(settings, tmp_path, monkeypatch):
    other = tmp_path / "other.json"
    other.write_text('{"data": 1}')
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xc0" * 5000)
    cases = [
        ({"hotpotqa": str(binary), "tasks": ("qa_2",)}, "--hotpotqa .*binary is not UTF-8 text: byte 0xc0 at 0$"),
        ({"squad": str(other)}, "--squad .*other.json is not a data set of this form"),
        ({"squad": str(tmp_path / "none")}, "--squad .* does not exist"),
        ({"haystack": (str(other),)}, "--haystack .*other.json is not JSON with a field text"),
        ({"samples": 60}, "has 48 questions with answers, but --samples 60 needs one more"),
        ({"english_words": str(tmp_path / "none")}, "--english-words .* does not exist"),
    ]
    for changes, words in cases:
        with pytest.raises(ValueError, match=words):
            load_sources(dataclasses.replace(settings, **changes))
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    with pytest.raises(ValueError, match="--sentences punkt needs the package nltk and its data"):
        load_sources(dataclasses.replace(settings, sentences="punkt"))


def test_the_tool_leaves_out_what_it_has_no_files_for(folder, load, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ruler_run.evaluate_ruler, "__defaults__", (load,))
    done = run_tool(
        capsys, "evaluate_ruler", "--model", folder, "--lengths", 256, "--samples", 1, "--output", tmp_path / "out"
    )
    assert done.returncode == 1
    assert "left out without --squad: qa_1" in done.stderr
    assert "left out without --haystack: niah_single_2" in done.stderr
    assert "error: --tasks niah_single_1 does not fit into --lengths 256" in done.stderr
