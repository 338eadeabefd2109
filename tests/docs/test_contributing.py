"""CONTRIBUTING.md: the files that a recipe lists are the files that its example touches."""

from __future__ import annotations

import re

import pytest

from tests.architecture.sources import ROOT, shipped_sources

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = {
    "Add a token mixer": r'"swa"',
    "**Of the memory.**": r"addressing_weight\b",
    "**Of training.**": r"\bexit_interval\b",
    "**Of a tool.**": r"\bcharacter_coverage\b",
    "Add an engine": r"\bMegatronEngine\b",
    "Add an evaluation": r"\bevaluation[./]needle[./]",
    "Add an update rule": r"\bENTROPY_EPSILON\b",
}
"""A recipe's heading, and the pattern that finds its example in the path or the text of a source."""
BESIDE = {
    "megatron_fwpkm/config/model_flops.py",
    "megatron_fwpkm/engines/base.py",
    "megatron_fwpkm/ops/fast_weight_memory/value_chain.py",
}
"""Named in a recipe for what stands in them, not for the example."""


def section(heading: str) -> str:
    """The recipe's text, to the next heading or the next bold one."""
    start = TEXT.index(heading)
    return re.split(r"\n(?:###? |\*\*Of )", TEXT[start:], maxsplit=1)[0]


@pytest.mark.parametrize("heading", RECIPES)
def test_a_recipe_lists_what_its_example_touches(heading):
    listed = set(re.findall(r"`((?:megatron_fwpkm|tools)/[\w/]+\.py)`", section(heading))) - BESIDE
    sources = [s for s in shipped_sources() if s.parts[0] != "benchmarks" and s.parts[-1] != "__init__.py"]
    assert listed == {s.path for s in sources if re.search(RECIPES[heading], f"{s.path}\n{s.text}")}


def test_every_recipe_is_checked():
    headings = re.findall(r"^### (.+)$|^(\*\*Of .+?\*\*)", TEXT, re.MULTILINE)
    assert {first or second for first, second in headings} - {"Add an option"} == set(RECIPES)
