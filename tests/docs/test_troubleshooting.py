"""The messages that docs/troubleshooting.md quotes are those of the code."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from tests.docs.markdown import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text()
_HOLE = "…"
_CELLS = [row.split("|")[1] for row in PAGE.splitlines() if row.startswith("| ")]
MESSAGES = [text for cell in _CELLS for text in re.findall(r"`([^`]+)`", cell) if " " in text.strip()]


def text_of(node: ast.AST) -> str | None:
    """A string of the source, with holes where values go; None for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or _HOLE for part in node.values)
    return None


@functools.cache
def all_texts() -> str:
    """Every string of the package and of its tools, one a line; strings that are passed in one call go together."""
    found = []
    for path in [*sorted((ROOT / "megatron_fwpkm").rglob("*.py")), *sorted((ROOT / "tools").rglob("*.py"))]:
        found += [text for node in ast.walk(ast.parse(path.read_text())) if (text := text_of(node)) is not None]
    return "\n".join(found)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_code(message: str):
    pieces = [piece.strip() for piece in message.split(_HOLE)]
    missing = [piece for piece in pieces if len(piece) > 1 and piece not in all_texts()]
    assert not missing, f"no message of the code contains {missing}"


def test_there_are_messages_to_check():
    assert len(MESSAGES) > 25
