"""Only the tables name a kind of layer: everything else looks it up, so that a new kind changes nothing elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from megatron_fwpkm.config.layer_kinds import LAYER_KINDS
from tests.architecture.sources import PACKAGE, Source, python_sources

TABLES = {
    *(f"{PACKAGE}/config/kind_rows/{kind}_kind.py" for kind in LAYER_KINDS),
    f"{PACKAGE}/config/layer_kinds.py",
    f"{PACKAGE}/models/kind_specs.py",
    f"{PACKAGE}/conversion/weight_rules.py",
    f"{PACKAGE}/hf/kind_modules.py",
}
MODULES = {"SelfAttention", "WindowedAttention", "MLP", "FwPKMAttention", "FwPKMMLP"}
"""Of token mixers and MLPs. A memory's is not among them: its fast weights are saved, reset and reported apart."""


def named_kinds(sources: Iterable[Source], kinds: Iterable[str]) -> list[str]:
    """Places outside the tables that decide by a kind's name (compare, look up, match) or import a kind's module."""
    names, found = set(kinds), []
    for source in sources:
        if source.path in TABLES:
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Compare):
                said = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
            elif isinstance(node, ast.Subscript | ast.match_case):
                said = list(ast.walk(node.slice if isinstance(node, ast.Subscript) else node.pattern))
            elif isinstance(node, ast.ImportFrom):
                found += [f"{source.path}:{node.lineno} imports {a.name}" for a in node.names if a.name in MODULES]
                continue
            else:
                continue
            wrong = {part.value for part in said if isinstance(part, ast.Constant) and part.value in names}
            line = getattr(node, "lineno", None) or said[0].lineno
            found += [f"{source.path}:{line} decides by {name!r}" for name in sorted(wrong)]
    return found


def test_only_the_tables_name_a_kind() -> None:
    kinds = set(LAYER_KINDS) - {"fwpkm"}  # which is a group of options, too
    ours = [source for source in python_sources() if source.parts[0] in (PACKAGE, "tools", "pretrain.py")]
    assert TABLES <= {source.path for source in ours}
    assert named_kinds(ours, kinds) == []


def test_every_kind_says_what_it_computes() -> None:
    silent = sorted(kind.name for kind in LAYER_KINDS.values() if kind.flops is None)
    assert silent == [], "give their rows `flops`, as the others in config/kind_rows have it"


def test_every_way_to_name_a_kind_is_found() -> None:
    text = (
        "from ..layers.attention import WindowedAttention, documents\n"
        "if mixer == 'swa': pass\n"
        "if mixer in ('gated', 'swiglu'): pass\n"
        "bytes_of['swa']\n"
        "match mixer:\n    case 'swiglu': pass\n"
        "print('swa', mixer == 'other')\n"
    )
    assert named_kinds([Source(f"{PACKAGE}/somewhere.py", text)], {"swa", "swiglu"}) == [
        f"{PACKAGE}/somewhere.py:{place}"
        for place in (
            "1 imports WindowedAttention", "2 decides by 'swa'", "3 decides by 'swiglu'",
            "4 decides by 'swa'", "6 decides by 'swiglu'",
        )
    ]  # fmt: skip
    assert named_kinds([Source(f"{PACKAGE}/hf/kind_modules.py", text)], {"swa"}) == []
