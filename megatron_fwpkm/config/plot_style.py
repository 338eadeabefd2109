"""How every picture looks: colours and matplotlib's settings, as plain values."""

from __future__ import annotations

from typing import Any

INK = "#1b2733"
PALE = "#67737f"
LINE = "#e3e8ec"
SERIES = (
    "#123c5a", "#d9822b", "#5a9bb0", "#8a5a83", "#7a8c3c", "#b0413e", "#d2aa2c", "#8b8f9c", "#2f7d5b", "#d58fb4",
)  # fmt: skip
"""Colours of series, in order, for ten of them; the first five are told apart in grey and by most eyes."""
RECALL = ("#fbf6ee", "#d3e6df", "#8cc0c6", "#3d7fa6", "#123c5a")
"""Colours of a fraction from 0 to 1, evenly spaced."""
CHANGE = ("#123c5a", "#5a9bb0", "#f4f1ec", "#e0a35c", "#8f3431")
"""Colours of a change from far below zero to far above, evenly spaced; the middle one is none."""

STYLE: dict[str, Any] = {
    "axes.edgecolor": LINE, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.titlelocation": "left",
    "axes.titlesize": 10, "axes.labelsize": 9, "axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "x",
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "grid.color": LINE,
    "text.color": INK, "xtick.color": PALE, "xtick.labelcolor": INK, "ytick.color": PALE, "ytick.labelcolor": INK,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "xtick.minor.size": 0, "ytick.major.size": 0, "ytick.minor.size": 0,
    "figure.facecolor": "white", "figure.dpi": 130, "savefig.dpi": 130, "legend.frameon": False, "legend.fontsize": 8,
    "font.size": 9,
}  # fmt: skip
"""For `matplotlib.rc_context(STYLE)`."""


def recall_colour(fraction: float) -> tuple[str, str]:
    """Background of a fraction from 0 to 1, and the colour of text that can be read on it."""
    place = min(max(fraction, 0.0), 1.0) * (len(RECALL) - 1)
    below = min(int(place), len(RECALL) - 2)
    parts = [[int(colour[start : start + 2], 16) for start in (1, 3, 5)] for colour in RECALL[below : below + 2]]
    mixed = [round(low + (high - low) * (place - below)) for low, high in zip(*parts, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed), "#ffffff" if _luminance(mixed) < 0.18 else "#000000"


def _luminance(parts: list[int]) -> float:
    """How light a colour looks, from 0 to 1 (WCAG 2); white and black contrast alike with 0.18."""
    linear = [part / 3294.6 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
