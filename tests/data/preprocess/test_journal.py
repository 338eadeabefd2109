"""The quarantine goes on where it was, or says that it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_fwpkm.data.preprocess.journal import BadRecordsFile


def test_a_quarantine_that_lost_lines_is_not_filled_up_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "out_quarantine.jsonl"
    with BadRecordsFile(path, overwrite=False, resume=False) as bad:
        bad.add({"line": 1})
        size = bad.checkpoint()
        bad.add({"line": 2})
        bad.keep = True
    partial = tmp_path / "out_quarantine.jsonl.partial"
    with BadRecordsFile(path, overwrite=False, resume=True) as bad:
        bad.restore(size)
        bad.keep = True
    assert partial.read_bytes() == b'{"line": 1}\n'
    partial.write_bytes(b'{"li')
    message = rf"{partial} has only 4 of the {size} bytes that the interrupted run wrote; start over with --overwrite"
    with pytest.raises(ValueError, match=message), BadRecordsFile(path, overwrite=False, resume=True) as bad:
        bad.restore(size)
    assert partial.read_bytes() == b'{"li'
