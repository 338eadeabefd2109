"""Files of results: numbers as they are shown, and writing that is whole or leaves what was there."""

from __future__ import annotations

import json
import math

import pytest

from megatron_fwpkm.evaluation.result_files import csv_text, json_text, rounded, write_atomically


def test_numbers_have_six_decimals_and_nan_is_none():
    shown = rounded({"loss": 2 / 3, "none": math.nan, "samples": 7, "name": "a"})
    assert shown == {"loss": 0.666667, "none": None, "samples": 7, "name": "a"}
    assert json.loads(json_text(shown)) == shown
    assert csv_text([shown, shown]) == "loss,none,samples,name\n" + 2 * "0.666667,,7,a\n"


def test_a_failed_write_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomically(path, "first")

    def full(self, data):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "second")
    assert path.read_text() == "first"
