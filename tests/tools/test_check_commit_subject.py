"""tools/check_commit_subject.py, the hook that looks at the subject of a commit."""

from __future__ import annotations

import pytest

from tests.tools.in_process import run_tool


@pytest.mark.parametrize(
    "subject",
    ["[ops] Sum the rows of a piece once", "[docs] Say what a room is\n\nBecause.", "fixup! [ops] Sum rows", "Merge x"],
)
def test_a_good_subject_passes(tmp_path, capsys, subject):
    (tmp_path / "message").write_text(subject)
    assert run_tool(capsys, "check_commit_subject", tmp_path / "message").returncode == 0


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        ("Sum the rows", "is not of the form `[room] Verb object`"),
        ("[attic] Sum the rows", "'attic' is not a room; choose one of: benchmarks, build, checkpoint, config"),
        ("[ops] Sum " + "x" * 63, "has 73 characters; the limit is 72"),
        ("[ops] sum the rows", "begin with a capital"),
        ("[ops] Sum the rows.", "end without a full stop"),
        ("", "is not of the form"),
    ],
)
def test_a_bad_subject_is_refused_with_its_reason(tmp_path, capsys, subject, said):
    (tmp_path / "message").write_text(subject + "\n\nA body.\n")
    done = run_tool(capsys, "check_commit_subject", tmp_path / "message")
    assert done.returncode == 1 and said in done.stderr, done
