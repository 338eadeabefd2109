"""Check the subject line of a commit message; the pre-commit hook runs it. Example:

python tools/check_commit_subject.py .git/COMMIT_EDITMSG

A subject is `[room] Verb object`. The room is a folder of the package or one of a few others, such as docs. What the
commit does begins with a capital letter and ends without a full stop. The limit is 72 characters.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_fwpkm.config.cli import run_cli, tool_parser

ROOT = Path(__file__).resolve().parents[1]
OTHER_ROOMS = ("benchmarks", "build", "docs", "launch", "tests", "tools")
LONGEST = 72


def subject_fault(subject: str) -> str | None:
    """What is wrong with a subject, in words; None where nothing is."""
    rooms = sorted([path.parent.name for path in (ROOT / "megatron_fwpkm").glob("*/__init__.py")] + [*OTHER_ROOMS])
    found = re.fullmatch(r"\[(\w+)\] (.+)", subject)
    if found is None:
        return f"{subject!r} is not of the form `[room] Verb object`, such as `[data] Count the records of a shard`"
    if found[1] not in rooms:
        return f"{found[1]!r} is not a room; choose one of: {', '.join(rooms)}"
    if len(subject) > LONGEST:
        return f"{subject!r} has {len(subject)} characters; the limit is {LONGEST}. Move the reasons to the body"
    if not found[2][0].isupper() or found[2].endswith("."):
        return f"{subject!r}: after the room, begin with a capital letter and end without a full stop"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Check the first line of the message file that git hands over."""
    parser = tool_parser(__doc__)
    parser.add_argument("message", type=Path, metavar="FILE", help="file that contains the commit message")
    first = parser.parse_args(argv).message.read_text(encoding="utf-8").partition("\n")[0]
    fault = subject_fault(first) if not first.startswith(("Merge ", "Revert ", "fixup! ", "squash! ")) else None
    if fault is not None:
        raise ValueError(fault)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
