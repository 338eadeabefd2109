"""Compile every Triton kernel of the ops ahead of time, without a GPU, and judge what comes out.

`python -m benchmarks.compile_gate` compares with the recorded table (benchmarks/results/kernels.json), `--write`
records it anew. Rules that hold for any version of Triton: a kernel spills no register, unless it is in float64, in
which nobody trains; a kernel that moves table rows loads and stores 16 bytes at a time; every kernel is declared
(megatron_fwpkm/ops/kernel_forms.py). Registers and shared memory are compared exactly with those recorded, for the
version of Triton that made them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.report import ROOT
from megatron_fwpkm.ops.kernel_forms import KernelVariant

ARCHITECTURES = (80, 90, 100)
"""A100, H100 and H200, B200."""

TABLE = ROOT / "benchmarks" / "results" / "kernels.json"


@dataclass(frozen=True)
class Compiled:
    """What one compiled kernel uses.

    Attributes:
        registers: of a thread.
        shared_bytes: of a program.
        stack_bytes: of a thread; above 0 registers were spilled to memory.
        wide_loads: instructions that load 16 bytes or more from global memory.
        loads: all instructions that load from global memory.
        wide_stores: instructions that store 16 bytes or more.
        stores: all instructions that store to global memory.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    wide_loads: int
    loads: int
    wide_stores: int
    stores: int


def kernel_modules(package: str) -> list[ModuleType]:
    """The modules of a package, or the one module, that declare kernels."""
    root = importlib.import_module(package)
    paths = getattr(root, "__path__", None)
    names = [found.name for found in pkgutil.walk_packages(paths, f"{package}.")] if paths else []
    modules = [root, *map(importlib.import_module, names)]
    return [module for module in modules if _kernels_of(module) or hasattr(module, "KERNEL_VARIANTS")]


def _kernels_of(module: ModuleType) -> dict[str, Any]:
    """The functions under `@triton.jit` that a module defines."""
    from triton.runtime.jit import JITFunction

    functions = {name: value for name, value in vars(module).items() if isinstance(value, JITFunction)}
    return {name: value for name, value in functions.items() if value.__module__ == module.__name__}


def undeclared(modules: Iterable[ModuleType]) -> list[str]:
    """Kernels that no variant compiles, neither itself nor as a function that a compiled kernel calls."""
    modules = list(modules)
    known = {name: kernel for module in modules for name, kernel in _kernels_of(module).items()}
    reached = {variant.kernel.fn.__name__ for module in modules for variant in getattr(module, "KERNEL_VARIANTS", ())}
    waiting = list(reached)
    while waiting:
        called = set(re.findall(r"\w+", known[waiting.pop()].src)) & set(known) - reached
        reached |= called
        waiting += called
    return [f"{name} is compiled by no KernelVariant of its module" for name in known if name not in reached]


def compile_variant(variant: KernelVariant, architecture: int) -> Compiled:
    """Compile one form of a kernel for one architecture.

    Args:
        variant: what to compile.
        architecture: compute capability times ten, such as 90.

    Returns:
        What it uses, read from the machine code, and its memory instructions, read from the PTX.

    Raises:
        ValueError: an argument of the kernel is declared twice or not at all.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    declared = [*variant.signature, *variant.constants]
    if sorted(declared) != sorted(names):
        raise ValueError(f"{variant.name}: {variant.kernel.fn.__name__} takes {names}, declared are {declared}")
    types = {name: variant.signature.get(name, "constexpr").partition(":")[0] for name in names}
    source = ASTSource(
        variant.kernel,
        types,
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name, kind in variant.signature.items()
            if kind.endswith(":16") or (kind.startswith("*") and ":" not in kind)
        },
    )
    built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(variant.options))
    (wide_loads, loads), (wide_stores, stores) = (_count(built.asm["ptx"], kind) for kind in ("ld", "st"))
    registers, stack = _machine_code_use(built.asm["cubin"])
    return Compiled(registers, built.metadata.shared, stack, wide_loads, loads, wide_stores, stores)


def _count(ptx: str, instruction: str) -> tuple[int, int]:
    """Instructions on global memory of 16 bytes or more, and all."""
    found = re.findall(rf"\b{instruction}\.global[\w.:]*?(?:\.v(\d+))?\.[bfsu](\d+)\b", ptx)
    return sum(int(count or 1) * int(bits) >= 128 for count, bits in found), len(found)


def _machine_code_use(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    assert found is not None, f"cuobjdump says {text!r}"
    return int(found[1]), int(found[2]) + int(found[3])


def violations(variant: KernelVariant, architecture: int, compiled: Compiled) -> list[str]:
    """The rules that one compiled kernel breaks."""
    spilled, loads, stores = compiled.stack_bytes, compiled.loads, compiled.stores
    rules = {
        f"spills registers ({spilled} bytes of stack a thread)": variant.may_spill or spilled == 0,
        f"loads no 16 bytes at a time ({loads} narrower loads)": not variant.moves_rows or compiled.wide_loads > 0,
        f"stores no 16 bytes at a time ({stores} narrower stores)": not variant.moves_rows or compiled.wide_stores > 0,
    }
    return [f"{variant.name} (sm_{architecture}) {text}" for text, holds in rules.items() if not holds]


def differences(recorded: dict[str, Any], found: dict[str, Any], complete: bool) -> list[str]:
    """What differs between the recorded table and what was compiled now.

    Args:
        recorded: kernel -> architecture -> numbers.
        found: the same, as compiled now.
        complete: every kernel was compiled, so that one which is only recorded is gone.
    """
    lines = [f"{name} is recorded and no longer there" for name in recorded if complete and name not in found]
    for name, by_architecture in found.items():
        if name not in recorded:
            lines.append(f"{name} is not recorded")
            continue
        for architecture, numbers in by_architecture.items():
            before = recorded[name].get(architecture, {})
            changed = [f"{key} {before.get(key)} -> {new}" for key, new in numbers.items() if before.get(key) != new]
            lines += [f"{name} ({architecture}): {', '.join(changed)}"] if changed else []
    return lines


def markdown(table: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        "# Compiled kernels", "",
        f"Compiled ahead of time with Triton {table['triton']} by `{table['command']}`; no GPU was used. Loads and "
        "stores are instructions in the PTX, those of 16 bytes or more first; the rest move scalars and indices. A "
        "stack above 0 means that registers were spilled.", "",
        "| kernel | architecture | registers | shared bytes | stack bytes | loads | stores |", "| --- " * 7 + "|",
    ]  # fmt: skip
    for name, by_architecture in table["kernels"].items():
        for architecture, n in by_architecture.items():
            cells = [
                name, architecture, n["registers"], n["shared_bytes"], n["stack_bytes"],
                f"{n['wide_loads']} of {n['loads']}", f"{n['wide_stores']} of {n['stores']}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, judge, compare with the record or write it; exit code 1 says that a rule or the record is broken."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_gate", description=summary)
    parser.add_argument("--write", action="store_true", help="record the table anew, every kernel included")
    parser.add_argument("--all", action="store_true", help="include the kernels that take long to compile")
    parser.add_argument("--package", default="megatron_fwpkm.ops", help="where to look for kernels (default: the ops)")
    parser.add_argument("--table", type=Path, default=TABLE, help="the recorded table, JSON; Markdown goes beside it")
    arguments = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set, so kernels are interpreted and cannot be compiled: unset it")
    import triton
    from triton.errors import TritonError

    begin, modules = time.monotonic(), kernel_modules(arguments.package)
    variants = [variant for module in modules for variant in getattr(module, "KERNEL_VARIANTS", ())]
    complete = arguments.all or arguments.write
    lines, kernels = undeclared(modules), dict[str, dict[str, Any]]()
    for variant in variants if complete else [variant for variant in variants if not variant.slow]:
        assert variant.name not in kernels, f"two kernel variants are called {variant.name}"
        kernels[variant.name] = {}
        for architecture in ARCHITECTURES:
            try:
                compiled = compile_variant(variant, architecture)
            except (TritonError, RuntimeError) as error:  # the latter where a pass of the compiler fails
                lines.append(f"{variant.name} (sm_{architecture}) does not compile: {str(error).splitlines()[-1]}")
                continue
            kernels[variant.name][f"sm_{architecture}"] = asdict(compiled)
            lines += violations(variant, architecture, compiled)
    summary = f"{len(kernels)} kernels for {len(ARCHITECTURES)} architectures in {time.monotonic() - begin:.0f} s"
    if arguments.write:
        command = " ".join(["python -m benchmarks.compile_gate", *(sys.argv[1:] if argv is None else argv)])
        table = {"triton": triton.__version__, "command": command, "kernels": kernels}
        arguments.table.write_text(json.dumps(table, indent=1) + "\n")
        arguments.table.with_suffix(".md").write_text(markdown(table))
    else:
        recorded = json.loads(arguments.table.read_text())
        if recorded["triton"] == triton.__version__:
            lines += differences(recorded["kernels"], kernels, complete)
        else:
            summary += f"; recorded with Triton {recorded['triton']}, not compared with this {triton.__version__}"
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    if lines and not arguments.write:
        print("if this is meant: python -m benchmarks.compile_gate --write", file=sys.stderr)
    print(summary)
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
