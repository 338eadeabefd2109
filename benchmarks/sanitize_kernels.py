"""Whether a kernel touches memory outside its tensors: triton-viz's sanitizer on every form that is launched.

`make sanitize-kernels`, in an environment with the Triton that triton-viz supports. The sanitizer does not look at the
addresses of one launch but asks a solver whether a program can reach another. It does not know all of Triton: what it
cannot check is listed with its reason.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks import memory
from benchmarks.repeated_launches import FirstLaunch, first_launches
from benchmarks.shapes import Shape
from megatron_fwpkm.ops.kernel_forms import KernelForm

_SHAPE = Shape(1, 16, 1, 4, 16, 16, 16, 8)
_CASES = [
    *((_SHAPE, mode) for mode in memory.MODES),
    (replace(_SHAPE, heads=2, table_dtype="bfloat16", undo_log="recompute"), "training"),
]
_SECONDS = 60
"""That the check of one form may take."""


@triton.jit
def planted_kernel(X: Any, count: Any, BLOCK: tl.constexpr) -> None:
    """Loads one number after the end of `X`."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(X + place, tl.load(X + place, mask=place < count + 1), mask=place < count)


@dataclass(frozen=True)
class Finding:
    """What came of a check: places outside tensors, or why there was no check."""

    places: tuple[str, ...] = ()
    obstacle: str = ""

    def __str__(self) -> str:
        if self.obstacle:
            return f"cannot be checked: {self.obstacle}"
        return f"OUT OF BOUNDS at {', '.join(self.places)}" if self.places else "checked"


@dataclass
class EqualProcesses:
    """Columns that are spread over processes, all of which have what this one has."""

    size: int
    num_columns: int

    def total(self, x: Tensor) -> Tensor:
        """Of all processes."""
        return self.size * x

    def sum_shards(self, x: Tensor) -> Tensor:
        """Of all processes."""
        return self.size * x


def find_places(launch: FirstLaunch, arguments: dict[str, Any]) -> tuple[str, ...]:
    """Where the sanitizer sees a load or store outside the tensors. Only once in a process: it may stay patched."""
    # By name: no extra can have it, whose Triton is not that of the others, so tools/setup.sh installs it alone.
    sanitizer = import_module("triton_viz.clients").Sanitizer(abort_on_error=False)
    import_module("triton_viz").trace(sanitizer)(launch.form.kernel)[launch.grid](**arguments, **launch.form.constants)
    places = (f"{line.filename}:{line.lineno}" for record in sanitizer.records for line in record.user_code_tracebacks)
    return tuple(dict.fromkeys(places)) or ("an unknown line",) * bool(sanitizer.records)


def find(launch: FirstLaunch, arguments: dict[str, Any]) -> Finding:
    """`find_places`, or why it fails."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            return Finding(places=find_places(launch, arguments))
        except Exception as error:  # whatever the sanitizer, its solver or the interpreter raises
            return Finding(obstacle=f"{type(error).__name__}: {error}".splitlines()[0])


def find_in_child(launch: FirstLaunch, arguments: dict[str, Any]) -> Finding:
    """`find` in a forked process, which has the arguments without copying them."""
    receiver, sender = get_context("fork").Pipe(duplex=False)

    def _check() -> None:
        sender.send(find(launch, arguments))

    child = get_context("fork").Process(target=_check)
    child.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(_SECONDS) else Finding(obstacle=f"takes longer than {_SECONDS} s")
    except EOFError:
        child.join()
        found = Finding(obstacle=f"the sanitizer ends with exit code {child.exitcode}")
    child.kill()
    child.join()
    return found


def check(launch: FirstLaunch) -> Finding:
    """Check a launch; it counts only if the sanitizer finds the same launch out of bounds on shorter tensors."""
    found = find_in_child(launch, launch.arguments)
    if found.obstacle or found.places:
        return found
    cut = {name: tensor.detach().view(-1)[:-1] for name, tensor in launch.tensors.items()}
    control = find_in_child(launch, launch.arguments | cut)
    return found if control.places else Finding(obstacle="nothing is found with its tensors cut short, either")


def _planted() -> FirstLaunch:
    form, arguments = KernelForm(planted_kernel, {"BLOCK": 4}, 1), {"X": torch.zeros(10), "count": 10}
    return FirstLaunch("planted_kernel", form, (3,), arguments, lambda: None)


def _block_call(gated: bool, dtype: torch.dtype, processes: int) -> None:
    """The block around a memory, forward and backward."""
    from megatron_fwpkm.ops.memory_block.block_types import NormWeights
    from megatron_fwpkm.ops.memory_block.triton.block_functions import TRITON_STEPS as STEPS

    def leaf(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
        """Random numbers."""
        return torch.randn(*sizes, dtype=dtype).requires_grad_()

    x, values, reads, projected = leaf(6, 20), leaf(6, 12), leaf(6, 12, dtype=torch.float32), leaf(6, 20)
    weights = NormWeights(leaf(20), leaf(20), *((leaf(20), leaf(1, 20), leaf(1)) if gated else ()))
    columns = EqualProcesses(processes, 12 * processes)
    inputs = STEPS.normalize_hidden(x, weights, 1e-5, torch.float32)
    standard = STEPS.standardize_values(values, torch.float32, columns)
    mixed = STEPS.mix_reads(reads, standard.mixed, inputs.gates, leaf(12), 1e-5, dtype, columns)
    end = STEPS.add_output(inputs.residual, projected, leaf(20))
    parts = [inputs.queries, inputs.values, standard.targets, mixed, end]
    torch.stack([part.float().sum() for part in parts]).sum().backward()


def calls() -> Iterator[Callable[[], Any]]:
    """What launches every form: the block around a memory, also with sharded columns, and memories of one process."""
    for case in product((True, False), (torch.float32, torch.bfloat16), (1, 2)):
        yield partial(_block_call, *case)
    for shape, mode in _CASES:
        yield memory.prepare(memory.Case(shape, "triton", mode, "cpu", 1))[0]


def table(findings: dict[str, Finding]) -> list[str]:
    """A line for every kernel and result, with the number of its forms, and one for every form out of bounds."""
    alike = Counter((name.split()[0], str(found)) for name, found in findings.items())
    width = max((len(kernel) for kernel, _ in alike), default=0)
    lines = [f"{'kernel':{width}}  forms  result"]
    lines += [f"{kernel:{width}}  {count:5}  {result}" for (kernel, result), count in sorted(alike.items())]
    lines += [f"OUT OF BOUNDS: {name}" for name, found in findings.items() if found.places]
    checked = [name for name, found in findings.items() if not found.obstacle]
    kernels = {name.split()[0] for name in checked}, {name.split()[0] for name in findings}
    return [
        *lines,
        f"{len(checked)} of {len(findings)} forms were checked, of {len(kernels[0])} of {len(kernels[1])} kernels",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Check all forms and print the table; returns 1 where one is out of bounds or the planted load is not found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize_kernels", description=__doc__)
    parser.parse_args(argv)
    try:
        import_module("triton_viz.clients")  # here, and not anew in every child
    except ImportError as error:
        parser.error(f"triton-viz does not import ({error}): run make sanitize-kernels, which installs it")
    if not triton.knobs.runtime.interpret:
        parser.error("kernels would be compiled, and there is nothing to check: set TRITON_INTERPRET=1")
    planted = find_in_child(_planted(), _planted().arguments)
    if not planted.places:
        print(f"the sanitizer does not find an out-of-bounds load that is there, so it finds none: {planted}")
        return 1
    print(f"a load out of bounds that is there is found: {planted}")
    findings = dict[str, Finding]()

    def _visit(launch: FirstLaunch) -> None:
        before = {name: tensor.detach().clone() for name, tensor in launch.tensors.items()}
        # First, for the interpreter keeps a kernel as it ran it: into a new one triton-viz would put symbolic loops,
        # and fail at more of them than at loops that run step by step.
        launch.run()
        findings[launch.name] = check(replace(launch, arguments=launch.arguments | before))

    with first_launches(_visit):
        for call in calls():
            call()
    print("\n".join(table(findings)))
    return int(any(found.places for found in findings.values()))


if __name__ == "__main__":
    sys.exit(main())
