"""The report as a page: its facts, and in a browser, where there is one, that nothing is cut and all is legible."""

from __future__ import annotations

import json
import re

import pytest

from megatron_fwpkm.config.plot_style import RECALL, recall_colour
from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.needle.report import needle_part
from megatron_fwpkm.evaluation.needle.run import evaluate
from megatron_fwpkm.evaluation.needle.settings import MEMORY_ON, short_length
from megatron_fwpkm.evaluation.report_page import name_of_model, render_page
from tests.evaluation.browser import BROWSER, look
from tests.evaluation.oracle import load_oracle

MEASURE = """
const edge = document.documentElement.clientWidth, texts = [...document.querySelectorAll("td, th, dd, dt, p, h1, h2")];
const range = document.createRange();
const right = element => (range.selectNodeContents(element), range.getBoundingClientRect().right);
return {
  page: document.documentElement.scrollWidth,
  cut: texts.filter(e => right(e) > edge + 0.5).map(e => e.textContent.slice(0, 40)),
  scrolling: [...document.querySelectorAll("*:not(.scroller)")]
    .filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
    .map(e => e.tagName),
  smallest: Math.min(...texts.filter(e => e.textContent).map(e => parseFloat(getComputedStyle(e).fontSize))),
  numbers: document.querySelectorAll(".panel td").length,
};
"""


@pytest.fixture
def report(make_settings, tmp_path):
    """report(**settings): the results and the page of an evaluation of the oracle."""

    def make(model_name: str = "", **changes):
        changes = {"lengths": (128, 200, 256, 512), "samples": 10} | changes
        options = RunOptions(tmp_path / "out", overwrite=True, model_name=model_name)
        results = evaluate(make_settings(**changes), options, load_oracle)
        return results, (tmp_path / "out" / "report.html").read_text()

    return make


def panels(page: str) -> dict[str, list[list[str]]]:
    """Title of every panel, and its rows as text."""
    figures = re.findall(r"<figcaption>(.*?)</figcaption><table[^>]*>(.*?)</table>", page)
    return {
        title: [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", table)]
        for title, table in figures
    }


def test_every_number_of_the_heatmap_is_text(report):
    results, page = report()
    drawn = panels(page)
    assert list(drawn) == ["memory on", "control: memory off", "control: memory frozen", "control: never shown"]
    for condition, rows in zip(results.settings.conditions(), drawn.values(), strict=True):
        assert rows[0] == ["", "128", "200", "256", "512"]
        assert [row[0] for row in rows[1:]] == ["0 %", "25 %", "50 %", "75 %", "100 %", "all"]
        for row, depth in zip(rows[1:], (*results.settings.depth_grid(), None), strict=True):
            found = [results.find(condition, length, depth).exact_match for length in (128, 200, 256, 512)]
            assert row[1:] == [f"{fraction:.2f}" for fraction in found]
    assert drawn["control: memory off"][5][1:] == ["1.00"] * 4 != drawn["control: memory off"][1][1:]


def test_many_lengths_are_rows_and_many_of_both_are_percent(report):
    lengths = tuple(range(128, 138))
    _, page = report(lengths=lengths, samples=5)
    rows = panels(page)["memory on"]
    assert rows[0] == ["", "0 %", "25 %", "50 %", "75 %", "100 %", "all"] and [row[0] for row in rows[1:]] == [
        str(length) for length in lengths
    ]
    assert "Columns are depths, rows are context lengths" in page and "percent" not in page
    _, page = report(lengths=lengths, depths=9, samples=9)
    rows = panels(page)["memory on"]
    assert len(rows[0]) == 11 and rows[1][1:] == ["100"] * 10 and "Numbers are percentages." in page


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/quickstart/hf", "quickstart"),
        ("runs/mine/checkpoints/iter_0000200", "mine"),
        ("/data/Austen-1B/export", "Austen-1B"),
        ("/data/my_hf", "my_hf"),
        ("/hf", "/hf"),
    ],
)
def test_a_model_is_called_after_the_folder_that_tells(path, name):
    assert name_of_model(path) == name


def test_the_name_given_is_that_of_the_report(report, folder):
    results, page = report(model_name="Austen <1B>")
    assert "<h1>Recall of Austen &lt;1B&gt;: ask-after-write, novel</h1>" in page
    assert json.loads(results.to_json())["model_name"] == "Austen <1B>"
    assert f"<dt>model</dt><dd>{folder}</dd>" in page, "where it lies is told among the settings"


def test_colours_go_from_pale_to_dark_under_text_that_contrasts():
    assert (recall_colour(0.0), recall_colour(1.0)) == ((RECALL[0], "#000000"), (RECALL[-1], "#ffffff"))
    assert recall_colour(0.25)[0] == RECALL[1] and recall_colour(7)[0] == RECALL[-1]
    for step in range(101):
        background, ink = (_luminance(colour) for colour in recall_colour(step / 100))
        bright, dark = max(background, ink), min(background, ink)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, f"{step} % cannot be read"


def _luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_lengths_are_short_on_an_axis():
    assert [short_length(n) for n in (512, 1024, 1500, 131072)] == ["512", "1K", "1,500", "128K"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(
    "wide",
    [pytest.param(False, id="usual"), pytest.param(True, id="many lengths and depths", marks=pytest.mark.slow)],
)
def test_nothing_is_cut_and_numbers_are_legible(report, tmp_path, wide):
    changes = {"lengths": tuple(range(2048, 2058)), "depths": 11, "samples": 11} if wide else {}
    results, _ = report(model_name="a-model-with-a-very-long-name-" * 4, **changes)
    measured, _ = look(render_page(needle_part(results)), MEASURE, [390, 1280], tmp_path)
    for width, found in measured.items():
        assert found["page"] == width, found
        assert found["cut"] == [] and found["scrolling"] == [], found
        assert found["smallest"] >= 12, found
        assert found["numbers"] == 4 * len(results.settings.lengths) * (len(results.settings.depth_grid()) + 1)
    assert results.find(MEMORY_ON, results.settings.lengths[0]).samples
