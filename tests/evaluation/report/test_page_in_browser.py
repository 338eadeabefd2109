"""A page with everything in it, in a browser: nothing is cut, all is legible in both schemes, keys reach everything."""

from __future__ import annotations

import pytest

from megatron_fwpkm.evaluation.report_page import render_joined_page
from tests.evaluation.browser import BROWSER, look
from tests.evaluation.report.sample_parts import sample_part

SCRIPT = """
const root = document.documentElement, button = document.getElementById("scheme");
const reachable = [...document.querySelectorAll("a, button, summary, input, select, [tabindex='0']")];
const focused = element => { element.focus(); return document.activeElement === element; };
const marked = element => { element.focus(); return getComputedStyle(element).outlineStyle !== "none"; };
const levels = colour => colour.match(/[\\d.]+/g).map(Number);
const light = colour => levels(colour).slice(0, 3).map(part => part / 255)
  .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
const opaque = colour => levels(colour).length < 4 || levels(colour)[3] > 0;
const behind = element => {
  for (let place = element; place; place = place.parentElement)
    if (opaque(getComputedStyle(place).backgroundColor)) return getComputedStyle(place).backgroundColor;
  return "rgb(255, 255, 255)";
};
const contrast = (...pair) => (Math.max(...pair.map(light)) + 0.05) / (Math.min(...pair.map(light)) + 0.05);
const written = [...document.querySelectorAll("body *")].filter(element => !element.closest("script, svg") &&
  [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()));
const faint = () => written.filter(element => contrast(getComputedStyle(element).color, behind(element)) < 4.5)
  .map(element => element.textContent.slice(0, 40));
const drawn = () => [...document.querySelectorAll("svg use[href*=DejaVu]")].map(one => getComputedStyle(one).fill)
  .filter(fill => contrast(fill, getComputedStyle(document.body).backgroundColor) < 4.5).length;
const scheme = name => { root.dataset.theme = name; return {page: getComputedStyle(document.body).backgroundColor,
  faint: faint(), drawn: drawn()}; };
const before = getComputedStyle(document.body).backgroundColor;
button.click();
const pressed = getComputedStyle(document.body).backgroundColor;
return {
  page: root.scrollWidth,
  unreached: reachable.filter(element => element.tabIndex !== 0 || !focused(element)).map(element => element.outerHTML),
  unmarked: reachable.filter(element => !marked(element)).map(element => element.outerHTML.slice(0, 80)),
  first: reachable[0].className,
  reached: reachable.length,
  scrolling: [...document.querySelectorAll("body *")].filter(element => !element.closest("svg")
    && element.clientWidth && element.scrollWidth > element.clientWidth + 1).map(element => element.className),
  fetched: performance.getEntriesByType("resource").map(entry => entry.name),
  twice: [...document.querySelectorAll("[id]")].map(element => element.id)
    .filter((id, place, ids) => ids.indexOf(id) !== place),
  broken: [...document.querySelectorAll("a[href^='#'], use")].map(element => element.getAttribute("href").slice(1))
    .filter(id => !document.getElementById(id)),
  toggled: before !== pressed && button.textContent,
  light: scheme("light"), dark: scheme("dark"),
};
"""


@pytest.mark.slow  # starts a browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: install Debian's package chromium")
def test_the_page_is_legible_and_reachable_at_any_width(tmp_path):
    parts = [sample_part(), sample_part("perplexity", passed=None), sample_part(passed=False)]
    page = render_joined_page("Evaluations of a_model_with_a_long_name" * 3, parts)
    found, console = look(page, SCRIPT, [390, 1280], tmp_path)
    assert console == []
    for width, one in found.items():
        assert one["page"] == width, one
        assert one["unreached"] == one["unmarked"] == one["fetched"] == one["twice"] == one["broken"] == [], one
        assert one["first"] == "skip" and one["reached"] >= 15
        assert set(one["scrolling"]) <= {"scroller"}, "only a wide picture scrolls, and by keys"
        assert one["toggled"] in ("Dark", "Light")
        for scheme in ("light", "dark"):
            assert one[scheme]["faint"] == [] and one[scheme]["drawn"] == 0, one[scheme]
        assert one["light"]["page"] == "rgb(255, 255, 255)" != one["dark"]["page"]
