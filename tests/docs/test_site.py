"""`make docs`: the site has every document, no broken link, and fetches nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.docs.markdown import ROOT, markdown_files

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)], cwd=ROOT,
        capture_output=True, text=True, timeout=120, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert build.returncode == 0, build.stderr[-3000:]
    return folder


def test_every_document_is_a_page(site):
    for path in markdown_files():
        page = path.relative_to(ROOT).with_suffix(".html")
        page = page.with_name("index.html") if page.name == "README.html" else page
        assert (site / page).is_file(), f"{path.relative_to(ROOT)} is not on the site"


def test_what_documents_link_to_is_served(site):
    assert (site / "benchmarks/traffic.py").read_text() == (ROOT / "benchmarks/traffic.py").read_text()
    assert (site / "examples/quickstart/result/heatmap.png").is_file()
    assert not (site / "pretrain.py").exists()


def test_it_works_without_a_network(site):
    """Links may lead elsewhere; scripts, styles, fonts and pictures may not come from there."""
    fetched = re.compile(r"""(?:\bsrc=|<link[^>]*\bhref=|url\(|@import )["']?((?:https?:)?//[^"')\s>]+)""")
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = fetched.findall(page.read_text())
        assert not found, f"{page.relative_to(site)} fetches {found}"


def test_its_search_finds_options(site):
    assert "fwpkm-layer-numbers" in (site / "search/search_index.json").read_text()


def test_markdown_is_read_as_on_github(site):
    """MkDocs wants an empty line before some lists and tables where GitHub does without; else their marks stay."""
    code = re.compile(r"<(pre|code|script|style)\b.*?</\1>", re.DOTALL)
    for page in site.rglob("*.html"):
        left = re.findall(r"^(?:[-*] .*|\d+\. .*|\|.*|.*\*\*.*|.*```.*)$", code.sub("", page.read_text()), re.MULTILINE)
        assert not left, f"{page.relative_to(site)} shows Markdown instead of reading it: {left[:3]}"
