"""Memory traces from settings to files, on an untrained model; and the page in a browser, where there is one."""

from __future__ import annotations

import csv
import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure

from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.memory_trace.memory_trace_settings import MemoryTraceSettings
from megatron_fwpkm.evaluation.memory_trace.run import inspect_memory
from megatron_fwpkm.evaluation.memory_trace.trace_detail import token_texts
from megatron_fwpkm.evaluation.memory_trace.trace_picture import _ages
from megatron_fwpkm.evaluation.memory_trace.trace_report import safe_json
from megatron_fwpkm.evaluation.memory_trace.trace_results import MemoryTraceResults
from megatron_fwpkm.evaluation.memory_trace.trace_tables import trace_text
from megatron_fwpkm.evaluation.model_loading import LoadedModel
from megatron_fwpkm.evaluation.needle.haystack import load_haystack
from megatron_fwpkm.evaluation.needle.samples import Cell, make_sample
from tests.evaluation.browser import BROWSER, look
from tests.evaluation.conftest import WORDS


@pytest.fixture(scope="module")
def loader(tiny_model: Any, tokenizer: Any) -> Any:
    """Gives the untrained model."""
    return lambda path, device: LoadedModel(tiny_model, tokenizer)


@pytest.fixture(scope="module")
def needle_settings(folder: Path) -> MemoryTraceSettings:
    """Three samples of 200 tokens."""
    return MemoryTraceSettings(str(folder), (str(folder / "novel.txt"),), 200, needles=2, samples=3, index=2)


@pytest.fixture(scope="module")
def traced(
    needle_settings: MemoryTraceSettings, loader: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MemoryTraceResults, Path]:
    """Their results, and the folder with the files; pictures, which take long, are not drawn."""
    output, drawing = tmp_path_factory.mktemp("trace"), b'<svg width="1pt" viewBox="0 0 1 1"></svg>'
    with pytest.MonkeyPatch.context() as patch:
        for module in ("run", "trace_report"):
            patch.setattr(f"megatron_fwpkm.evaluation.memory_trace.{module}.draw_trace", lambda *arguments: drawing)
        return inspect_memory(needle_settings, RunOptions(output, command=("trace",)), loader), output


def test_the_sample_is_that_of_the_evaluation_of_needles(traced, folder, tokenizer, spec) -> None:
    results, _ = traced
    haystack = load_haystack([str(folder / "novel.txt")], tokenizer)
    for record, depth in zip(results.records, (0.5, 0.75, 1.0), strict=True):
        cell = Cell(200, depth, record.index)
        sample = make_sample(haystack, spec, cell, needles=2, seed=1, reach=14)
        assert record.depth == depth and record.expected == sample.asked.answer_tokens
        if record.detail is not None:
            first = sample.asked_start + sample.asked.answer.start
            assert [token["place"] for token in record.detail["tokens"]] == [first, first + 1, first + 2]
            assert tokenizer.decode(sample.context[first : first + 3].tolist()) == record.detail["expected"]
    assert [record.index for record in results.records] == [2, 3, 4] and results.causality.passed
    assert [record.detail is None for record in results.records] == [False, True, True]


def test_files_agree_with_each_other(traced) -> None:
    results, output = traced
    values = json.loads((output / "trace.json").read_text())
    rows = list(csv.DictReader((output / "reads.csv").open()))
    assert values["summary"]["samples"] == 3 and values["shown"]["index"] == 2
    by_slot = {(row["answer_token"], row["head"], row["slot"]): float(row["weight"]) for row in rows}
    assert len(by_slot) == 3 * 4 and sum(by_slot.values()) == pytest.approx(3)
    recall = values["summary"]["layers"]["1"]["recall"]["all"]
    assert recall["at_1"]["value"] <= recall["at_4"]["value"] <= recall["at_all"]["value"] <= 1
    right = values["summary"]["layers"]["1"]["right"]
    assert right["tokens_found"]["of"] + right["tokens_not_found"]["of"] == recall["at_1"]["of"] == 9
    for row in rows:
        if row["writer_position"]:
            position = int(row["writer_position"])
            assert 0 <= position < 200 and int(row["writer_chunk"]) == position // 32
    text = trace_text(results)
    assert "recall@1" in text and f"expected: {values['shown']['expected']!r}" in text


@pytest.mark.slow
def test_a_killed_trace_goes_on_and_gives_the_same(traced, needle_settings, loader, tmp_path) -> None:
    _, output = traced
    lines = (output / "samples.jsonl").read_bytes().splitlines(keepends=True)
    pictures = []
    for kept in (len(lines) - 1, 1):
        (tmp_path / "samples.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        inspect_memory(needle_settings, RunOptions(tmp_path, command=("trace",)), loader)
        for name in ("trace.json", "reads.csv", "samples.jsonl"):
            assert (tmp_path / name).read_bytes() == (output / name).read_bytes(), name
        pictures.append((tmp_path / "trace.png").read_bytes())
    assert pictures[0] == pictures[1] and pictures[0].startswith(b"\x89PNG")


@pytest.mark.slow
def test_text_of_ones_own(folder, loader, tokenizer, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("The code baranto delanka fomireme. " * 9)
    settings = MemoryTraceSettings(
        str(folder), text=str(tmp_path / "notes.txt"), prompt="The code </script> baranto", max_new_tokens=4,
        mode="streaming",
    )  # fmt: skip
    results = inspect_memory(settings, RunOptions(tmp_path / "out"), loader)
    detail = results.detail
    assert 1 <= len(detail["tokens"]) <= 4 and detail["expected"] is None and not results.knows_answers
    assert "exact match" not in trace_text(results)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("</script>") == page.count("<script") and "://" not in re.sub(r"data:image[^\"]*", "", page)


def test_ages_of_a_text_in_which_nothing_is_read_again() -> None:
    results = SimpleNamespace(layers=[1], histogram=lambda layer, name: [0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ages(axes := Figure().subplots(), results)
    assert axes.get_legend() is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "give either --haystack, for a needle sample, or --text"),
        ({"haystack": ("a",), "text": "b", "prompt": "c"}, "give either --haystack"),
        ({"text": "b"}, "--text and --prompt go together"),
        ({"text": "b", "prompt": "c", "samples": 2}, "--samples 2 needs --haystack"),
        ({"haystack": ("a",), "depth": 50.0}, "--depth 50 must be between 0 and 1"),
        ({"haystack": ("a",), "reads": 0}, "--reads 0 must be at least 1"),
        ({"haystack": ("a",), "index": -1}, "--index -1 must be at least 0"),
        ({"haystack": ("a",), "mode": "off"}, "--mode 'off' is not known; choose from ask-after-write"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MemoryTraceSettings("model", **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": 20}, "--length 20 is too short for --needles 2"),
        ({"length": 10**6}, "has only 6300 tokens, but a context needs 1000000"),
        ({"haystack": ("missing.txt",)}, "--haystack missing.txt does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_model_is_loaded(folder, tmp_path, changes, said) -> None:
    values = {"haystack": (str(folder / "novel.txt"),), "needles": 2} | changes
    with pytest.raises(ValueError, match=said):
        inspect_memory(MemoryTraceSettings(str(folder), **values), RunOptions(tmp_path / "out"))


def test_a_model_without_memory_is_refused(folder, tmp_path) -> None:
    for file in ("tokenizer.model", "novel.txt"):
        shutil.copy(folder / file, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "fwpkm", "vocab_size": 423}))
    settings = MemoryTraceSettings(str(tmp_path), (str(tmp_path / "novel.txt"),), 200)
    with pytest.raises(ValueError, match="has no memory layers, so there are no slots to trace"):
        inspect_memory(settings, RunOptions(tmp_path / "out"))


def test_texts_of_tokens_are_the_text(tokenizer) -> None:
    ids = tokenizer.encode(f"{WORDS[0]} {WORDS[1]}, ünï")
    assert "".join(token_texts(tokenizer, ids)) == tokenizer.decode(ids)


def test_data_cannot_end_its_script() -> None:
    text = safe_json({"a": "</script><!-- & \u2028"})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"a": "</script><!-- & \u2028"}


PRESS = """
const root = document.querySelector(".memory-trace"), button = root.querySelectorAll("button")[1];
button.focus();
const focused = document.activeElement === button;
button.click();
return {
  focused, pressed: [...root.querySelectorAll("button")].map(one => one.getAttribute("aria-pressed")),
  marks: root.querySelectorAll("mark").length, sources: root.querySelectorAll("li").length,
  rows: root.querySelectorAll("tbody tr").length,
  page: document.documentElement.scrollWidth, first: root.querySelector("li").textContent,
};
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
def test_a_token_of_the_answer_shows_its_source_in_a_browser(traced, tmp_path) -> None:
    results, output = traced
    measured, _ = look((output / "report.html").read_text(), PRESS, [1280], tmp_path)
    found = measured[1280]
    assert found["focused"] and found["pressed"] == ["false", "true", "false"]
    assert found["rows"] == 4 and found["marks"] == found["sources"] > 0 and found["page"] <= 1280
    assert re.match(r"[\d.]+ % from token ", found["first"])
