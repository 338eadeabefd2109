"""Losses of whole documents: equal to one call of the model, however they are cut, stopped or spread."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.model_loading import LoadedModel
from megatron_fwpkm.evaluation.perplexity import run as perplexity_run
from megatron_fwpkm.evaluation.perplexity.documents_read import load_documents
from megatron_fwpkm.evaluation.perplexity.loss_table import PerplexityResults, text_lines
from megatron_fwpkm.evaluation.perplexity.perplexity_settings import PerplexitySettings
from megatron_fwpkm.evaluation.perplexity.run import measure_perplexity
from megatron_fwpkm.evaluation.perplexity.spans import Span
from megatron_fwpkm.evaluation.perplexity.stream_reader import StreamReader
from megatron_fwpkm.hf.memory_block import BlockAroundMemory
from tests.tools.in_process import run_tool


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    """In float64, so that rounding hides nothing."""
    return type(tiny_model)(tiny_model.config).double().eval()


@pytest.fixture(scope="module")
def load(model: Any, tokenizer: Any) -> Callable[..., LoadedModel]:
    return lambda path, device: LoadedModel(model, tokenizer)


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> PerplexitySettings:
    """Two documents, one of them of 37 tokens and an uneven block."""
    (tmp_path / "short.txt").write_text((folder / "novel.txt").read_text()[:120])
    return PerplexitySettings(str(folder), (str(folder / "novel.txt.gz"), str(tmp_path / "short.txt")), length=300,
                              block=64, segment=50)  # fmt: skip


def whole(model: Any, rows: list[Any], mode: str) -> list[torch.Tensor]:
    """The losses of documents that share a memory, each in one call."""
    model.memory_mode = mode
    cache, found = model.new_cache(), []
    for row in rows:
        ids = torch.from_numpy(row)
        with torch.inference_mode():
            logits = model(ids[None], use_cache=True, past_key_values=cache).logits[0]
        found.append(F.cross_entropy(logits[:-1], ids[1:], reduction="none"))
        cache.end_text()
    return found


def rows_of(results: PerplexityResults) -> list[tuple[Any, ...]]:
    return [(row.condition, row.versus, row.span, row.tokens, row.loss.mean) for row in results.rows]


@pytest.mark.parametrize("reset", ["document", "never"])
def test_losses_are_those_of_one_call(
    settings: PerplexitySettings, load: Any, model: Any, tokenizer: Any, tmp_path: Path, reset: Any
) -> None:
    settings = replace(settings, memory_reset=reset)
    results = measure_perplexity(settings, RunOptions(tmp_path / "out"), load)
    rows = [document.tokens for document in load_documents(settings, tokenizer, None)]
    groups = [rows] if reset == "never" else [[row] for row in rows]
    expected = {
        mode: torch.cat([loss for group in groups for loss in whole(model, group, mode)]) for mode in ("on", "off")
    }
    for mode, losses in expected.items():
        found = results.find(mode)
        assert found.tokens == len(losses) == 299 + len(rows[1]) - 1
        # The segments' attention sums in another order; nothing else differs.
        assert found.loss.mean == pytest.approx(float(losses.mean()), abs=1e-6)
    first = expected["on"][:63].sum() + expected["on"][299 : 299 + min(63, len(rows[1]) - 1)].sum()
    beginning = results.find("on", None, Span(0, 64))
    assert beginning.loss.mean * beginning.tokens == pytest.approx(float(first), abs=1e-4)
    gap = results.find("on", "off")
    assert gap.loss.mean == pytest.approx(float((expected["on"] - expected["off"]).mean()), abs=1e-6)
    assert abs(gap.loss.mean) > 1e-5, "the memory changes nothing here, so that the test could not fail"
    assert [str(span) for span in results.spans()] == ["0 to 63", "64 to 127", "128 to 255", "from 256"]
    assert sum(results.find("on", None, span).tokens for span in results.spans()) == found.tokens
    letters = sum(len(tokenizer.decode(row[1:].tolist()).encode()) for row in rows)
    assert results.bits_per_byte("on") == pytest.approx(float(expected["on"].sum()) / math.log(2) / letters, rel=1e-6)


def test_the_memory_is_carried_only_where_it_is_asked_for(
    settings: PerplexitySettings, load: Any, tmp_path: Path
) -> None:
    twice = replace(settings, text=(settings.text[0],) * 2)
    reset = measure_perplexity(twice, RunOptions(tmp_path / "reset"), load)
    carried = measure_perplexity(replace(twice, memory_reset="never"), RunOptions(tmp_path / "carried"), load)
    assert reset.find("off").loss == carried.find("off").loss
    assert reset.find("on").loss.mean != carried.find("on").loss.mean


def test_a_stopped_run_continues_and_files_agree(
    settings: PerplexitySettings, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RunOptions(tmp_path / "out", command=("python", "tool.py"))
    first = measure_perplexity(settings, options, load)
    log = tmp_path / "out" / "samples.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 4
    log.write_text("".join(lines[:3]) + lines[3][:9])
    run, seen = StreamReader.run, []
    monkeypatch.setattr(StreamReader, "run", lambda reader, key: seen.append(key.condition) or run(reader, key))
    again = measure_perplexity(replace(settings, segment=7), options, load)
    assert seen == ["on", "off"]
    for one, other in zip(rows_of(first), rows_of(again), strict=True):
        assert one[:-1] == other[:-1] and one[-1] == pytest.approx(other[-1], abs=1e-6)
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [float(row["loss"]) for row in rows] == [value["loss"] for value in values["results"]]
    assert values["causality"]["passed"] and "provenance" not in values
    assert json.loads((tmp_path / "out" / "run.json").read_text())["provenance"]["command"] == "python tool.py"
    assert (tmp_path / "out" / "losses.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "on less off" in page and "2 documents" in page and "from 256" in page
    assert "less off" in text_lines(again)
    with pytest.raises(ValueError, match="different: block"):
        measure_perplexity(replace(settings, block=32), options, load)


def test_a_baseline_reads_the_same_tokens(
    settings: PerplexitySettings, model: Any, tokenizer: Any, folder: Path, tmp_path: Path
) -> None:
    plain = type(model)(type(model.config)(**model.config.to_dict() | {"fwpkm_layers": []})).double().eval()
    shutil.copytree(folder, tmp_path / "plain")

    def load_either(path: str, device: str) -> LoadedModel:
        return LoadedModel(plain if path == str(tmp_path / "plain") else model, tokenizer)

    chosen = replace(settings, baseline=str(tmp_path / "plain"), memory=("on",))
    results = measure_perplexity(chosen, RunOptions(tmp_path / "out"), load_either)
    alone = measure_perplexity(
        replace(settings, model=str(tmp_path / "plain")), RunOptions(tmp_path / "alone"), load_either
    )
    assert results.conditions == ("on", "baseline") and alone.conditions == ("no memory",)
    assert results.find("baseline").loss == alone.find("no memory").loss
    gap = results.find("on", "baseline").loss.mean
    assert gap == pytest.approx(results.find("on").loss.mean - alone.find("no memory").loss.mean, abs=1e-12)


def test_reading_as_training_does(
    settings: PerplexitySettings, load: Any, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    results = measure_perplexity(replace(settings, reading="training"), RunOptions(tmp_path / "out"), load)
    streamed = measure_perplexity(settings, RunOptions(tmp_path / "stream"), load)
    for mode in ("on", "off"):
        model.memory_mode, losses = mode, []
        for document in load_documents(settings, tokenizer, None):
            ids = torch.from_numpy(document.tokens)
            with torch.inference_mode():
                losses.append(
                    F.cross_entropy(model(ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="none")
                )
        assert results.find(mode).loss.mean == pytest.approx(float(torch.cat(losses).mean()), abs=1e-9)
    assert results.find("off").loss.mean == pytest.approx(streamed.find("off").loss.mean, abs=1e-9)
    assert abs(results.find("on").loss.mean - streamed.find("on").loss.mean) > 1e-6


def test_gates_are_those_of_the_memory_block(
    settings: PerplexitySettings, load: Any, model: Any, tmp_path: Path
) -> None:
    (block,) = [module for module in model.modules() if isinstance(module, BlockAroundMemory)]
    seen: list[torch.Tensor] = []

    def keep(module: BlockAroundMemory, inputs: tuple[torch.Tensor, ...]) -> None:
        assert module.gate_proj is not None and module.gate_norm is not None
        logits = F.linear(module.gate_norm(inputs[0]), module.gate_proj.weight, module.gate_proj.bias)
        seen.append(torch.sigmoid(logits)[0, :, 0])

    handle = block.register_forward_pre_hook(keep)
    short = replace(settings, text=settings.text[1:], segment=300)
    try:
        results = measure_perplexity(short, RunOptions(tmp_path / "out"), load)
    finally:
        handle.remove()
    count = results.find("on").tokens
    gates = [gates for gates in seen if len(gates) == count + 1][-2]  # of the memory on; off comes behind it
    found = {row.span: row.gate.mean for row in results.gates if row.condition == "on"}
    assert found == {Span(0): pytest.approx(float(gates[:-1].mean()), abs=1e-9)}, "a single part: the whole"
    assert "layer 1" in (tmp_path / "out" / "report.html").read_text()
    assert not block.gate_proj._forward_hooks, "nothing stays behind"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": ()}, "--memory is empty"),
        ({"memory": ("on", "on")}, "--memory on on contains the same mode twice"),
        ({"memory": ("cold",)}, "--memory 'cold' is not known; choose from on, off, frozen"),
        ({"memory": ("on", "frozen")}, "--memory frozen would read the initial memory, as off does: give texts"),
        ({"data_path": ("a",)}, "give either --text or --data-path"),
        ({"text": ()}, "give either --text or --data-path"),
        ({"text_weights": (1.0,)}, "--text-weights 1.0: 2 files of --text need a weight each"),
        ({"text_weights": (1.0, 0.0)}, "--text-weights 1.0 0.0: every weight must be a positive number"),
        ({"text": ("a", "a"), "text_weights": (1.0, 2.0)}, "a file of --text is named twice; add up its weights"),
        ({"reading": "aloud"}, "--reading 'aloud' is not known; choose from stream, training"),
        ({"reading": "training", "memory_reset": "never"}, "--reading training begins every document with the init"),
        ({"documents": 3}, "--documents is of --data-path alone"),
        ({"memory_reset": "sometimes"}, "--memory-reset 'sometimes' is not known"),
        ({"length": 1}, "--length 1 must be at least 2"),
        ({"block": 0}, "--block 0 must be at least 1"),
        ({"segment": 0}, "--segment 0 must be at least 1"),
    ],
)
def test_what_cannot_be_measured(settings: PerplexitySettings, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(settings, **changes)


def test_what_is_refused_before_weights_are_loaded(
    settings: PerplexitySettings, tokenizer: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, device: str) -> LoadedModel:
        raise AssertionError("loaded")

    def said(**changes: Any) -> str:
        with pytest.raises(ValueError) as caught:
            measure_perplexity(replace(settings, **changes), RunOptions(tmp_path / "out"), refuse)
        return str(caught.value)

    words = (folder / "novel.txt").read_text().split()
    (tmp_path / "one.txt").write_text(next(word for word in words if len(tokenizer.encode(word)) == 1))
    assert "one.txt has only 1 token, so that" in said(text=(str(tmp_path / "one.txt"),), length=None)
    assert "--text missing.txt does not exist" in said(text=("missing.txt",))
    assert "--baseline nowhere is not a folder" in said(baseline="nowhere")
    facts = perplexity_run.inspect_model(settings.model)
    other = replace(facts, tokenizer=SimpleNamespace(identity="another"))
    answers = iter([facts, other, facts, replace(facts, bos=1), replace(facts, positions=200)])
    monkeypatch.setattr(perplexity_run, "inspect_model", lambda path, device: next(answers))
    assert "has another tokenizer than --model" in said(baseline=str(folder))
    assert "begins documents with BOS and --model" in said(baseline=str(folder))
    assert "has only 200 learned position embeddings; use --length 200 or less" in said()


def test_the_tool(tiny_model: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An export, and the table on the terminal."""
    tiny_model.save_pretrained(tmp_path / "export")
    shutil.copy(folder / "tokenizer.model", tmp_path / "export")
    done = run_tool(
        capsys, "evaluate_perplexity", "--model", tmp_path / "export", "--text", folder / "novel.txt", "--length", 200,
        "--block", 64, "--workers", 1, "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == "condition loss [95 %] perplexity bits per byte".split()
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "documents.csv", "losses.png", "report.html", "report_part.json", "results.csv", "results.json", "run.json",
        "samples.jsonl",
    }  # fmt: skip
