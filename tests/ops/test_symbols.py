"""One table of symbols: the kernel files begin with the symbols they use, in the words of the README."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

OPS = Path(__file__).resolve().parents[2] / "megatron_fwpkm" / "ops"
KERNELS = sorted(OPS.rglob("*_kernels.py"))


def table(path: Path) -> dict[str, str]:
    """Symbols and meanings of the README of a kernel file's operation; product keys have those of the memory."""
    operation = path.relative_to(OPS).parts[0].replace("product_key", "fast_weight_memory")
    section = (OPS / operation / "README.md").read_text().partition("## Symbols\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\S+) \| (.+) \|$", section, flags=re.MULTILINE)
    return {symbol: meaning for symbol, meaning in rows if symbol not in ("symbol", "---")}


def symbols(path: Path) -> dict[str, str]:
    """Symbols and meanings at the head of a kernel file."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[1].split())
    listed = text.removeprefix("Symbols (README.md): ").removesuffix(".").split(" | ")
    return {symbol: meaning for symbol, _, meaning in (one.partition(" ") for one in listed)}


def test_kernel_files_are_found() -> None:
    names = {path.name.removesuffix("_kernels.py") for path in KERNELS}
    assert names == {"block", "key", "mixture", "plan", "reader", "select", "value"}


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_the_head_of_a_kernel_file_is_the_readmes(path: Path) -> None:
    known = table(path)
    found = symbols(path)
    assert found == {symbol: known.get(symbol) for symbol in found}
    assert list(found) == [symbol for symbol in known if symbol in found], "in the order of the table"


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_shapes_are_given_in_these_symbols(path: Path) -> None:
    comments = " ".join(re.findall(r"# (.*)", path.read_text()))
    shapes = " ".join(re.findall(r"\[([^\]]*)\]", comments))
    used = {name for name in re.findall(r"[A-Za-z]\w*'?", shapes) if len(name.rstrip("'")) == 1}
    assert used <= set(symbols(path)), "explained at the head"
    words = set(re.findall(r"[A-Za-z]\b'?", comments))
    assert set(symbols(path)) - used <= words, "used"
