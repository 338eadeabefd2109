"""Parts of a report: written and read again, joined in one page, legible colours, and errors for people."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_fwpkm.config.plot_style import SERIES
from megatron_fwpkm.evaluation import report_page
from megatron_fwpkm.evaluation.causality_verdict import CausalityCheck
from megatron_fwpkm.evaluation.report_joining import read_report_part
from megatron_fwpkm.evaluation.report_page import render_joined_page, render_page, write_report
from megatron_fwpkm.evaluation.report_svg import embedded_picture, scoped_ids
from tests.evaluation.report.sample_parts import sample_part, wide_picture
from tests.tools.in_process import run_tool

COLOURS = dict(
    (name, (light, dark))
    for name, light, dark in re.findall(
        r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", Path(report_page.__file__).with_suffix(".html").read_text()
    )
)


@pytest.fixture(scope="module")
def part():
    """A part with everything that a page can show."""
    return sample_part()


@pytest.fixture(scope="module")
def page(part):
    """The part's page."""
    return render_page(part)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_the_page(scheme):
    pairs = [(name, "page", 4.5) for name in ("ink", "pale", "accent", "good", "bad")]
    pairs += [("ink", "raised", 4.5), ("pale", "raised", 3), *((f"series-{n}", "page", 3) for n in range(len(SERIES)))]
    for text, background, least in pairs:
        one, other = luminance(COLOURS[text][scheme]), luminance(COLOURS[background][scheme])
        contrast = (max(one, other) + 0.05) / (min(one, other) + 0.05)
        assert contrast >= least, f"{text} on {background}: {contrast:.2f}"


def test_a_part_is_read_as_it_was_written(tmp_path, part, page):
    write_report(part, tmp_path)
    read = read_report_part(tmp_path)
    assert read.to_json() == part.to_json() and read.causality == part.causality
    assert render_page(read) == page == (tmp_path / "report.html").read_text()


def test_a_page_names_no_other_place(page):
    assert set(re.findall(r"https?://[^\"' )]+", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in page and 'src="' not in page
    for table in re.findall(r'<table class="summary.*?</table>', page):
        assert "<caption>" in table and "<th>" not in table


def test_pictures_take_the_colours_of_the_page():
    html = embedded_picture(wide_picture(), 'Loss of "A & B"')
    assert 'aria-label="Loss of &quot;A &amp; B&quot;"' in html and 'tabindex="0"' in html
    assert all(f"var(--series-{number})" in html for number in range(len(SERIES)))
    assert not re.findall(r"(?:fill|stroke): #(?!ffffff)\w+", html), "no colour is left that one scheme would hide"
    assert "fill: #ffffff" not in html and "<metadata" not in html and "<style" not in html and "<?xml" not in html


def test_ids_are_told_apart_with_what_refers_to_them():
    html = '<p id="a">x</p><a href="#a">a</a><a href="#other">o</a><g clip-path="url(#a)" aria-labelledby="a z"/>'
    links = '<p id="s-a">x</p><a href="#s-a">a</a><a href="#other">o</a>'
    assert scoped_ids(html, "s") == links + '<g clip-path="url(#s-a)" aria-labelledby="s-a z"/>'


def test_parts_of_one_name_have_anchors_of_their_own(part):
    failed = replace(part, causality=CausalityCheck(1, False, True))
    page = render_joined_page("A < B", [part, replace(failed, name="needles-2"), part, replace(part, name="Content")])
    anchors = re.findall(r'<article id="([^"]+)"', page)
    assert anchors == ["needles", "needles-2", "needles-3", "content-2"]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) - len(set(ids)) == 0, "every id once"
    assert {f'href="#{anchor}"' in page for anchor in anchors} == {True}
    assert "<h1>A &lt; B</h1>" in page and '<div class="failed">FAILED</div>' in page


def test_the_tool_joins_folders_in_their_order(tmp_path, capsys, part):
    folders = [tmp_path / name for name in ("b", "a")]
    for folder in folders:
        folder.mkdir()
        write_report(replace(part, name=folder.name), folder)
    output = tmp_path / "new" / "report.html"
    argv = ["--inputs", *folders, "--output", output, "--title", "Both"]
    assert run_tool(capsys, "build_report", *argv)[:2] == (0, f"report: {output}\n")
    assert re.findall(r'<article id="([^"]+)"', output.read_text()) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no report_part.json: give the --output of a finished evaluation"),
        ("{", "report_part.json is damaged .* run the evaluation's command again"),
        ("[]", "report_part.json is damaged"),
        ({"lead": None}, "report_part.json is damaged .a text is something else"),
        ({"sections": [{"heading": "A"}]}, "report_part.json is damaged"),
        ({"causality": {"unknown": 1}}, "report_part.json is damaged"),
        ({"settings": []}, "report_part.json is damaged"),
    ],
)
def test_a_folder_without_a_whole_part_is_refused(tmp_path, part, content, message):
    if content is not None:
        text = json.dumps(part.to_json() | content) if isinstance(content, dict) else content
        (tmp_path / "report_part.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_report_part(tmp_path)
    with pytest.raises(ValueError, match="is not a folder; give the --output of an evaluation"):
        read_report_part(tmp_path / "none")


def test_a_page_is_not_written_over_a_folder(tmp_path, capsys):
    done = run_tool(capsys, "build_report", "--inputs", tmp_path, "--output", tmp_path)
    assert done.returncode == 1 and "is a folder; give the path of the page" in done.stderr
