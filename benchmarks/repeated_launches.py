"""Whether equal inputs give equal bits: every form of a kernel that training and inference launch, 30 times.

`python -m benchmarks.repeated_launches`. The first launch of every form, with the types of its arguments, is repeated
on copies of what it was given, and everything that it can write is hashed on the device after every repeat.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import hardware, memory, shapes
from benchmarks.report import make_output_folder

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_fwpkm.ops.kernel_forms import KernelForm

_PAPER = replace(shapes.PAPER, batch=2, tokens=1024)
CALLS = {
    "paper": (
        _PAPER,
        replace(_PAPER, table_dtype="bfloat16"),
        replace(_PAPER, undo_log="recompute"),
        replace(_PAPER, topk=32, heads=4, num_subkeys=1024, key_dim=256, value_dim=768),
    ),
    "rehearsal": shapes.GRIDS["rehearsal"],
}
"""Shapes by name of the size: the paper's, and one with several blocks of columns and several passes over pairs."""
_BLOCK = 1 << 22
"""Numbers that are hashed at once."""


@dataclass
class Repeats:
    """What was found: for every form its hashes, of which there should be one."""

    count: int
    hashes: dict[str, list[int]] = field(default_factory=dict)

    def unequal(self) -> list[str]:
        """Forms whose repeats differ."""
        return [form for form, found in self.hashes.items() if len(set(found)) > 1]


def hash_of(tensor: Tensor) -> int:
    """A number that a change of any one bit changes."""
    import torch

    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    data = torch.nn.functional.pad(data, (0, -data.numel() % 4)).view(torch.int32)
    weights = torch.arange(min(_BLOCK, data.numel()), device=data.device) * 2 + 1
    found = torch.zeros((), dtype=torch.int64, device=data.device)
    for block in data.split(_BLOCK):
        found = found * 0x9E3779B1 + (block * weights[: block.numel()]).sum()
    return int(found)


@dataclass(frozen=True)
class FirstLaunch:
    """The first launch of a form with such types of arguments.

    Attributes:
        name: of the kernel, its constants and the types of its tensors.
        form: how the kernel is compiled.
        grid: number of programs in every dimension.
        arguments: by the names of the kernel's parameters.
        run: launches it.
    """

    name: str
    form: KernelForm
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    run: Callable[[], None]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those of the arguments that are tensors."""
        return {name: value for name, value in self.arguments.items() if hasattr(value, "dtype")}


@contextmanager
def first_launches(visit: Callable[[FirstLaunch], None]) -> Iterator[None]:
    """Inside, the first launch of every form is left to `visit`, which must run it; the others are as usual."""
    from megatron_fwpkm.ops.kernel_forms import KernelForm

    launch, seen = KernelForm.launch, set[str]()

    def _launch(form: KernelForm, grid: tuple[int, ...], *records: Mapping[str, Any]) -> None:
        known = {name: value for record in records for name, value in record.items()}
        arguments = {name: known[name] for name in form.parameters}
        types = " ".join(str(value.dtype)[len("torch.") :] for value in arguments.values() if hasattr(value, "dtype"))
        name = f"{form.kernel.__name__} {json.dumps(dict(form.constants))} {types}"
        if name in seen:
            return launch(form, grid, *records)
        seen.add(name)
        visit(FirstLaunch(name, form, grid, arguments, partial(launch, form, grid, *records)))

    KernelForm.launch = _launch  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        KernelForm.launch = launch  # type: ignore[method-assign]


@contextmanager
def repeated(repeats: Repeats) -> Iterator[None]:
    """Inside, the first launch of every form is done `repeats.count` times on equal inputs."""

    def _launch_again(first: FirstLaunch) -> None:
        before = {name: tensor.clone() for name, tensor in first.tensors.items()}
        found = repeats.hashes.setdefault(first.name, [])
        for _ in range(repeats.count):
            for parameter, tensor in first.tensors.items():
                tensor.data.copy_(before[parameter])  # autograd, which saved some of them, is not to know
            first.run()
            found.append(hash(tuple(hash_of(tensor) for tensor in first.tensors.values())))

    with first_launches(_launch_again):
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """Repeat, print a line for every form that is unequal and write all hashes; returns 1 where one is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeated_launches", description=__doc__)
    parser.add_argument("--device", default="auto", help="torch device (default: auto, cuda where there is one)")
    parser.add_argument("--size", choices=list(CALLS), default="paper", help="default: paper")
    parser.add_argument("--repeats", type=int, default=30, help="launches of every form (default: 30)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the JSON file")
    arguments = parser.parse_args(argv)
    try:
        device = hardware.resolve(arguments.device)
    except RuntimeError as error:
        parser.error(str(error))
    if not make_output_folder(arguments.output):
        return 2
    repeats = Repeats(arguments.repeats)
    with repeated(repeats):
        for shape in CALLS[arguments.size]:
            for mode in memory.MODES:
                memory.prepare(memory.Case(shape, "triton", mode, device, 1))[0]()
    for form in repeats.unequal():
        print(f"NOT EQUAL: {len(set(repeats.hashes[form]))} results of {repeats.count} launches: {form}")
    print(f"{len(repeats.hashes)} forms, {repeats.count} launches each, {len(repeats.unequal())} with unequal bits")
    file = arguments.output / f"repeated_launches_{arguments.size}.json"
    record = {"device": hardware.title(device), "repeats": repeats.count, "hashes": repeats.hashes}
    file.write_text(json.dumps(record, indent=1) + "\n")
    return int(bool(repeats.unequal()))


if __name__ == "__main__":
    sys.exit(main())
