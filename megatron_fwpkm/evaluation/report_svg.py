"""Pictures of a report: files of matplotlib, and its SVG within the page, in the colours of the page, light or dark."""

from __future__ import annotations

import hashlib
import io
import re
from html import escape

from matplotlib.figure import Figure

from ..config.plot_style import INK, LINE, PALE, SERIES

_VARIABLES = {
    INK: "var(--ink)",
    PALE: "var(--pale)",
    LINE: "var(--line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
}
_WIDE_POINTS = 360.0
"""Wider pictures scroll on a narrow screen, where their text would be too small."""
_REFERENCES = re.compile(r'(\b(?:id|for|aria-controls|aria-labelledby|aria-describedby)="|href="#|url\(#)([^")]+)')


def picture_file(figure: Figure, form: str) -> bytes:
    """A figure as PNG or SVG (`form`), without a date: the same figure gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def embedded_picture(svg: bytes, alt: str) -> str:
    """A picture of matplotlib as wide as its place, as HTML.

    Args:
        svg: the file; colours of `config/plot_style.py` become those of the page, white backgrounds that of the page.
        alt: what it shows, for people who do not see it.
    """
    text = svg.decode()
    width = float(re.search(r'<svg [^>]*?width="([\d.]+)pt"', text)[1])  # type: ignore[index]  # always in points
    text = text[text.index("<svg ") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g id="patch_\d+">\s*<path [^>]*?style="fill: )#ffffff', r"\1none", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = scoped_ids(text.replace("xlink:href", "href"), hashlib.blake2b(svg, digest_size=4).hexdigest())
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib gives every picture a view box"
    wide = width > _WIDE_POINTS
    smallest = f' style="min-width:min({1.3 * width:.0f}px, 60rem)"' if wide else ""
    name = escape(alt)
    root = f'<svg class="picture" role="img" aria-label="{name}" {box[0]}{smallest}>'
    text = root + text[text.index(">") + 1 :].strip()
    return f'<div class="scroller" tabindex="0" role="region" aria-label="{name}">{text}</div>' if wide else text


def scoped_ids(html: str, scope: str) -> str:
    """The same HTML with `scope` before all of its ids and the references to them: it can stand beside others."""
    ids = set(re.findall(r'\bid="([^"]+)"', html))

    def scoped(found: re.Match[str]) -> str:
        """An attribute, or the beginning of one, with its ids."""
        names = (f"{scope}-{name}" if name in ids else name for name in found[2].split(" "))
        return found[1] + " ".join(names)

    return _REFERENCES.sub(scoped, html)
