"""Pictures of benchmarks and of document lengths: one style, every number in place, no bars on logarithmic axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from benchmarks.report import Figure
from megatron_fwpkm.config.plot_style import INK, SERIES, STYLE
from megatron_fwpkm.data.indexed.indexed_format import DatasetInfo
from megatron_fwpkm.data.indexed.inspection import Inspection, draw_histogram

PANELS: dict[str, dict[str, list[float | None]]] = {
    "training": {"reference": [400.0, None], "sparse": [25.0, 30.0]},
    "inference": {"reference": [250.0, None], "sparse": [19.5, 41.0]},
}


def benchmark() -> Any:
    """Two shapes, one of which the reference does not take."""
    return Figure(["base", "bf16"], PANELS, "milliseconds").draw()


def lengths(tmp_path: Path) -> Any:
    """Lengths of ten documents."""
    counts = np.array([1, 3], np.int32)
    info = DatasetInfo(str(tmp_path / "corpus"), np.dtype(np.uint16), counts, None, "fingerprint")
    return draw_histogram(Inspection(info, 56, [], [(1, 2, 4), (2, 4, 5), (4, 8, 0), (8, 16, 1)]))


@pytest.fixture(autouse=True)
def style() -> Any:
    """As where they are written."""
    with matplotlib.rc_context(STYLE):
        yield


def test_benchmarks_are_dots_with_their_numbers() -> None:
    figure = benchmark()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["reference", "sparse"]
    for axes, series in zip(figure.axes, PANELS.values(), strict=True):
        dots = [found for found in axes.collections if isinstance(found, PathCollection)]
        assert [to_hex(found.get_facecolor()[0]) for found in dots] == list(SERIES[:2])
        for found, values in zip(dots, series.values(), strict=True):
            points = [[value, row] for row, value in enumerate(values) if value is not None]
            assert found.get_offsets().tolist() == points
        told = [text.get_text() for text in axes.texts]
        assert told == [f"{value:g}" for values in series.values() for value in values if value is not None]
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["base", "bf16"]


def test_lengths_are_bars_on_a_plain_axis(tmp_path: Path) -> None:
    (axes,) = lengths(tmp_path).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2 to 3", "4 to 7", "8 to 15"]
    assert [bar.get_width() for bar in axes.patches] == [4, 5, 0, 1]
    assert [text.get_text() for text in axes.texts] == ["4", "5", "0", "1"]
    assert (axes.get_xscale(), axes.get_xlim()[0]) == ("linear", 0)


@pytest.mark.parametrize("kind", ["benchmark", "lengths"])
def test_one_style_without_bars_on_logarithmic_axes(kind: str, tmp_path: Path) -> None:
    for axes in (benchmark() if kind == "benchmark" else lengths(tmp_path)).axes:
        assert not axes.patches or (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
        assert to_hex(axes.xaxis.label.get_color()) == INK and not axes.spines["top"].get_visible()
