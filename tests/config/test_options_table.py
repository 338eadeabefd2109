"""docs/options.md is generated and fresh."""

from __future__ import annotations

import pytest

from megatron_fwpkm.config import options_table
from megatron_fwpkm.config.loading import option_groups


def test_the_document_is_fresh():
    written = options_table.OUTPUT.read_text(encoding="utf-8")
    assert written == options_table.render(), "docs/options.md is stale: run `make docs` and commit it"


def test_every_option_has_a_row():
    text = options_table.render()
    for _, _, found in option_groups():
        for option in found:
            assert text.count(f"\n| `{option.flag}` |") == 1, option.flag


def test_check_tells_a_stale_document(tmp_path, capsys):
    path = tmp_path / "docs" / "options.md"
    with pytest.raises(ValueError, match="options.md is stale: run `make docs`"):
        options_table.main(["--check", "--output", str(path)])
    assert options_table.main(["--output", str(path)]) == 0
    assert options_table.main(["--check", "--output", str(path)]) == 0
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ValueError, match="stale"):
        options_table.main(["--check", "--output", str(path)])
