"""The laws: each takes sources and returns a line per violation, so that a test can show all of them at once."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable

from megatron_fwpkm.config.megatron_releases import SUPPORTED_MEGATRON
from tests.architecture.sources import Source

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_KERNEL_LINES = 150
MAX_PRETRAIN_LINES = 60
MAX_TOOL_LINES = 80

# Put together from halves, so that this file keeps its own law.
_UNFINISHED = re.compile(r"\b(" + "TO" + "DO|FIX" + "ME|X" + "XX|NotImplemented" + r"Error)\b")
_MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.$}])/(tmp|work|farm|root|home)/")
_ASSERTS = re.compile(r"\b(assert|raises|warns|fail|_?check)")
_WITHOUT_MESSAGE = {"SystemExit", "KeyboardInterrupt"}
_HF_MAY_IMPORT = {"torch", "transformers", "safetensors"}  # transformers cannot be installed without the last


_KNOWS_RELEASES = {
    "megatron_fwpkm/config/megatron_releases.py",
    "megatron_fwpkm/distributed/megatron_versions.py",
}


def long_files(sources: Iterable[Source]) -> list[str]:
    """Files of more than 400 lines."""
    counted = [(source.path, source.text.count("\n")) for source in sources]
    return [f"{path}: {lines} lines" for path, lines in counted if lines > MAX_FILE_LINES]


def long_functions(sources: Iterable[Source]) -> list[str]:
    """Functions of more than 80 lines, or 150 for a Triton kernel."""
    found = []
    for source in sources:
        for function in source.functions():
            lines = (function.end_lineno or 0) - function.lineno + 1
            kernel = any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)
            if lines > (MAX_KERNEL_LINES if kernel else MAX_FUNCTION_LINES):
                found.append(f"{source.path}:{function.lineno} {function.name}: {lines} lines")
    return found


def undocumented(sources: Iterable[Source]) -> list[str]:
    """Modules, and public classes and functions, nested ones and setters among them, without a docstring."""
    found: list[str] = []
    for source in sources:
        if source.text.strip() and ast.get_docstring(source.tree) is None:
            found.append(f"{source.path}:1 (module)")
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            # The implementation of an overload speaks for its companions.
            overload = any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)
            if ast.get_docstring(node) is None and not overload:
                found.append(f"{source.path}:{node.lineno} {node.name}")
    return found


def empty_docstrings(sources: Iterable[Source]) -> list[str]:
    """Docstrings that satisfy the law before and tell nothing: one word, or the name of another place."""
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                public = not node.name.startswith("_")
                if public and (re.fullmatch(r"\S+", text) or re.match(r"See (?!that|whether)[^ ]+", text)):
                    found.append(f"{source.path}:{node.lineno} {node.name}: {text!r}")
    return found


def foreign_markup(sources: Iterable[Source]) -> list[str]:
    """Roles and double backticks of reStructuredText: names stand in single backticks."""
    pattern = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`|(?<!`)``(?!`)")
    return _matching_lines([(source.path, source.text) for source in sources], pattern)


def absolute_imports(sources: Iterable[Source]) -> list[str]:
    """Imports of the package by its name from within: they are relative there."""
    return [
        f"{source.path}:{node.lineno} from {node.module}"
        for source in sources
        for node in ast.walk(source.tree)
        if source.parts[0] == "megatron_fwpkm" and isinstance(node, ast.ImportFrom) and node.level == 0
        if (node.module or "").split(".")[0] == "megatron_fwpkm"
    ]


def megatron_groups(sources: Iterable[Source]) -> list[str]:
    """Megatron's parallel state outside of layers, models, distributed and the engine that makes it."""
    found = []
    for source in sources:
        if source.parts[0] != "megatron_fwpkm" or source.parts[1] in {"layers", "models", "distributed"}:
            continue
        if source.parts[1] == "engines" and source.parts[-1].startswith("megatron"):
            continue
        found += _matching_lines([(source.path, source.text)], re.compile(r"\bparallel_state\b"))
    return found


def megatron_releases(sources: Iterable[Source]) -> list[str]:
    """Whatever asks which release of Megatron is installed, outside of the module for their differences."""
    found = []
    for source in sources:
        if source.parts[0] == "tests" or source.path in _KNOWS_RELEASES:
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Try) and any(map(_imports_megatron, ast.walk(ast.Module(node.body, [])))):
                found.append(f"{source.path}:{node.lineno} catches a failing import of Megatron")
            elif isinstance(node, ast.Attribute) and re.match(r"megatron\b.*__version__$", ast.unparse(node)):
                found.append(f"{source.path}:{node.lineno} reads Megatron's version")
            elif isinstance(node, ast.Call) and re.search(r"\bversion\(['\"]megatron", ast.unparse(node)):
                found.append(f"{source.path}:{node.lineno} reads Megatron's version")
            elif isinstance(node, ast.Constant) and node.value in SUPPORTED_MEGATRON:
                found.append(f"{source.path}:{node.lineno} names the release {node.value}")
    return found


def _imports_megatron(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(name.name.split(".")[0] == "megatron" for name in node.names)
    return isinstance(node, ast.ImportFrom) and not node.level and str(node.module).split(".")[0] == "megatron"


def shared_names(sources: Iterable[Source], allowed: Iterable[str]) -> list[str]:
    """Modules of one name, and public classes of one name, in several places of the package."""
    places: dict[str, list[str]] = {}
    for source in sources:
        if source.parts[-1] != "__init__.py":
            places.setdefault(source.parts[-1], []).append(source.path)
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(source.path)
    return [f"{name}: {', '.join(paths)}" for name, paths in places.items() if len(paths) > 1 and name not in allowed]


def unfinished(files: Iterable[tuple[str, str]]) -> list[str]:
    """Stubs and notes to oneself."""
    return _matching_lines(files, _UNFINISHED)


def machine_paths(files: Iterable[tuple[str, str]]) -> list[str]:
    """Paths of one machine, which mean nothing on another; a container recipe may name its own."""
    return _matching_lines([(path, text) for path, text in files if path != "Dockerfile"], _MACHINE_PATH)


def _matching_lines(files: Iterable[tuple[str, str]], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number} {line.strip()[:100]}"
        for path, text in files
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def hidden_globals(sources: Iterable[Source]) -> list[str]:
    """`global` statements and `get_args()`-style look-ups: what a function needs comes through its arguments."""
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Global):
                found.append(f"{source.path}:{node.lineno} global {', '.join(node.names)}")
            if isinstance(node, ast.Call) and not node.args and not node.keywords:
                called = ast.unparse(node.func).split(".")[-1]
                if called in {"get_args", "get_config", "get_timers", "get_tokenizer"}:
                    found.append(f"{source.path}:{node.lineno} {called}()")
    return found


def communication(sources: Iterable[Source]) -> list[str]:
    """Uses of torch.distributed."""
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            imported = isinstance(node, ast.ImportFrom) and (
                (node.module or "").startswith("torch.distributed")
                or (node.module == "torch" and any(alias.name == "distributed" for alias in node.names))
            )
            plain = isinstance(node, ast.Import) and any(a.name.startswith("torch.distributed") for a in node.names)
            used = isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed"
            if imported or plain or used:
                found.append(f"{source.path}:{node.lineno} torch.distributed")
    return found


def imported_packages(source: Source) -> set[str]:
    """Top-level names of everything a file imports, the standard library left out."""
    names = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names)


def hf_strangers(sources: Iterable[Source]) -> list[str]:
    """Imports of the hf room that an export could not resolve: it ships these files and modules of ops."""
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [(node.module or "").split(".")[0]]
            elif isinstance(node, ast.ImportFrom) and node.level > 1:
                module = "." * node.level + (node.module or "")
                names = [] if module.startswith("..ops.") else [module]
            else:
                continue
            strange = [name for name in names if name not in _HF_MAY_IMPORT and name not in sys.stdlib_module_names]
            found += [f"{source.path}:{node.lineno} imports {name}" for name in strange]
    return found


def fat_entry_points(sources: Iterable[Source]) -> list[str]:
    """Entry points that do more than parse and call, or run when a spawned process imports them."""
    found = []
    for source in sources:
        is_tool = source.parts[0] == "tools" and len(source.parts) == 2
        if source.path != "pretrain.py" and not is_tool:
            continue
        limit = MAX_TOOL_LINES if is_tool else MAX_PRETRAIN_LINES
        if (lines := source.text.count("\n")) > limit:
            found.append(f"{source.path}: {lines} lines, at most {limit}")
        mains = [f for f in source.tree.body if isinstance(f, ast.FunctionDef) and f.name == "main"]
        if not mains or [argument.arg for argument in mains[0].args.args] != ["argv"]:
            found.append(f"{source.path}: no main(argv)")
        body = source.tree.body
        guarded = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in body)
        loose = any(isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) for node in body)
        if not guarded or loose:
            found.append(f"{source.path}: work outside `if __name__ == '__main__'`")
    return found


def tests_that_cannot_fail(sources: Iterable[Source]) -> list[str]:
    """Tests without an assertion, and errors whose message nobody reads."""
    found = []
    for source in sources:
        if source.parts[0] != "tests":
            continue
        # A test may leave the assertion to a function of its file, called or handed to another process.
        helpers = [f.name for f in source.functions() if not f.name.startswith("test_") and _ASSERTS.search(_code(f))]
        asserts = re.compile("|".join([_ASSERTS.pattern, *(rf"\b{name}\b" for name in helpers)]))
        # An error that the test itself made up has nothing to say.
        own_classes = [node.name for node in source.tree.body if isinstance(node, ast.ClassDef)]
        ours = re.compile("|".join(["(?!)", *(rf"\b{name}\b" for name in own_classes)]))
        for function in source.functions():
            if function.name.startswith("test_") and not asserts.search(_code(function)):
                found.append(f"{source.path}:{function.lineno} {function.name} asserts nothing")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.With):
                unread = [text for text in map(_unread_error, node.items) if text and not ours.search(text)]
                found += [f"{source.path}:{node.lineno} {text} without match=" for text in unread]
    return found


def _code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return "\n".join(ast.unparse(node) for node in function.body)


def _unread_error(item: ast.withitem) -> str | None:
    """The source of `pytest.raises(X)` when it neither has match= nor keeps the error, and X has a message to read."""
    call = item.context_expr
    if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith("raises") or item.optional_vars:
        return None
    if any(keyword.arg == "match" for keyword in call.keywords) or ast.unparse(call.args[0]) in _WITHOUT_MESSAGE:
        return None
    return ast.unparse(call)
