"""Small faults that a source file can have: found in its syntax tree, written back into its text.

Nothing is planted where a fault would be no fault: docstrings, annotations, decorators, messages (what is raised,
printed, logged or warned), text, and the guard `if __name__ == "__main__"`.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "megatron_fwpkm"

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
_WORDS = {"help", "metavar", "description", "title", "label", "msg"}
"""Arguments that are for people to read."""
_SPEAKING = {"print", "warn", "warning", "info", "debug", "error", "exception", "log", "say", "notice"}


@dataclass(frozen=True)
class Mutant:
    """One fault in one file."""

    path: str
    """From the project's root, with forward slashes."""
    line: int
    kind: str
    before: str
    """What stands there, on one line."""
    after: str
    span: tuple[int, int]
    """Where `before` stands in the file, in bytes of UTF-8."""
    text: str
    """What to write there."""
    code: str
    """The line as it is, for the report."""

    def apply(self, source: str) -> str:
        """The file with the fault."""
        data = source.encode()
        return (data[: self.span[0]] + self.text.encode() + data[self.span[1] :]).decode()

    def __str__(self) -> str:
        """Place and fault in one line."""
        where = "" if self.before in self.code and len(self.before) > 12 else f", in: {_short(self.code)}"
        return f"{self.path}:{self.line} {self.kind}: {_short(self.before)} -> {_short(self.after)}{where}"


def draw(root: Path, room: str, count: int, seed: int) -> list[Mutant]:
    """`count` mutants of a room, at most one a line; a larger count begins with those of a smaller one.

    Raises:
        ValueError: there is no such room, or nothing in it to change.
    """
    folder = root / PACKAGE / room
    rooms = sorted(path.name for path in (root / PACKAGE).glob("[a-z]*") if path.is_dir())
    if not room or not folder.is_dir():
        raise ValueError(f"--room {room!r} is not a folder of {PACKAGE}; choose one of {', '.join(rooms)}")
    found: list[Mutant] = []
    for file in sorted(folder.rglob("*.py")):
        found += mutants_of(file.read_text(), file.relative_to(root).as_posix())
    random.Random(seed).shuffle(found)
    by_line: dict[tuple[str, int], Mutant] = {}
    for mutant in found:
        by_line.setdefault((mutant.path, mutant.line), mutant)
    if not by_line:
        raise ValueError(f"--room {room} holds nothing that could be changed")
    return list(by_line.values())[:count]


def mutants_of(source: str, path: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its text."""
    lines = source.encode().split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    found = []
    for place in _places(ast.parse(source)):
        for node, kind, replacement in _changes(place):
            after = ast.unparse(replacement)
            text = after if isinstance(node, ast.stmt) else f"({after})"
            first = starts[node.lineno - 1] + node.col_offset
            last = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            code = lines[node.lineno - 1].decode().strip()
            mutant = Mutant(path, node.lineno, kind, ast.unparse(node), after, (first, last), text, code)
            if _parses(mutant.apply(source)):
                found.append(mutant)
    return found


def _places(node: ast.AST) -> Iterator[ast.stmt | ast.expr]:
    """Statements and expressions that decide what the program does."""
    if isinstance(node, ast.stmt | ast.expr):
        yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "exc", "msg", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_no_place(child):
                yield from _places(child)


def _is_no_place(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr):
        value = node.value
        return isinstance(value, ast.Constant) or (isinstance(value, ast.Call) and _name(value.func) in _SPEAKING)
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")


def _name(function: ast.expr) -> str:
    """The last part of what is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _changes(node: ast.stmt | ast.expr) -> Iterator[tuple[ast.stmt | ast.expr, str, ast.stmt | ast.expr]]:
    """Nodes in or below this one, the kind of fault, and what to have in the node's place."""
    yield from ((node, kind, other) for kind, other in _other_statements(node))
    yield from ((node, kind, other) for kind, other in _other_expressions(node))
    conditions = [node.test] if isinstance(node, ast.If | ast.While | ast.IfExp) else []
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        conditions = [test for generator in node.generators for test in generator.ifs]
    for test in conditions:
        if not isinstance(test, ast.Compare | ast.UnaryOp):  # those have faults of their own that negate them
            yield test, "condition negated", ast.UnaryOp(ast.Not(), test)


def _other_statements(node: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield "returns None", ast.Return(ast.Constant(None))
    if isinstance(node, ast.Raise | ast.AugAssign | ast.Continue | ast.Break | ast.Delete | ast.Expr):
        yield "statement dropped", ast.Pass()


def _other_expressions(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Constant):
        yield from _other_constants(node.value)
    elif isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in _COMPARISONS[type(operator)]:
                changed = copy.deepcopy(node)
                changed.ops[index] = other()
                yield "comparison", changed
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield "arithmetic", ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield "and/or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield "sign or not dropped", node.operand
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)


def _other_constants(value: object) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int | float):
        yield "constant", ast.Constant(value + 1)
        if value not in (0, 1):
            yield "constant", ast.Constant(type(value)(0))


def _other_calls(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        yield "call", ast.Call(ast.Name(_CALLS[node.func.id]), node.args, node.keywords)
    for index, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in _WORDS:
            others = [*node.keywords[:index], *node.keywords[index + 1 :]]
            yield f"argument {keyword.arg} dropped", ast.Call(node.func, node.args, others)


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 90 else f"{line[:60]} ... {line[-25:]}"
