"""How Triton kernels are launched, and the forms of each that the compile gate judges without a GPU.

A form (`KernelForm`) says with which constants and how many warps a kernel is compiled. Constants and what a launch
computes with are given in records, mappings from the names of the kernels' parameters; of these a kernel takes what it
names. A module of variants ends with a tuple `KERNEL_VARIANTS`; `python -m benchmarks.compile_gate` finds all of them
in this room. Nothing is compiled here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class KernelForm(NamedTuple):
    """A kernel as it is compiled for one kind of launch.

    Attributes:
        kernel: the function under `@triton.jit`.
        constants: value of every `tl.constexpr` parameter, and None for a pointer that is not passed.
        num_warps: of a program.
    """

    kernel: Any
    constants: Mapping[str, Any]
    num_warps: int

    @classmethod
    def of(cls, kernel: Any, constants: Mapping[str, Any], num_warps: int, absent: Iterable[str] = ()) -> KernelForm:
        """The form with those of the constants that the kernel names, and those of the `absent` pointers."""
        known = {**constants, **dict.fromkeys(absent)}
        return cls(kernel, {name: known[name] for name in kernel.arg_names if name in known}, num_warps)

    @property
    def options(self) -> dict[str, Any]:
        """What is passed beside the arguments. Products are rounded before they are added, as in the interpreter."""
        return {"num_warps": self.num_warps, "enable_fp_fusion": False}

    @property
    def parameters(self) -> list[str]:
        """Names of what every launch must be given."""
        return [name for name in self.kernel.arg_names if name not in self.constants]

    def launch(self, grid: tuple[int, ...], *records: Mapping[str, Any]) -> None:
        """Run the kernel on the device of its tensors, which Triton would run on the current one.

        Args:
            grid: number of programs in every dimension.
            records: arguments by the names of the kernel's parameters; the last record that has a name counts, and
                what the kernel does not name is left out.
        """
        known = {name: value for record in records for name, value in record.items()}
        arguments = {name: known[name] for name in self.parameters}
        index = next(value.get_device() for value in arguments.values() if isinstance(value, Tensor))
        if index < 0 or index == torch.cuda.current_device():  # on the CPU it is -1
            self.kernel[grid](**arguments, **self.constants, **self.options)
            return
        with torch.cuda.device(index):
            self.kernel[grid](**arguments, **self.constants, **self.options)


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if it is not contiguous or does not begin at a multiple of 16 bytes.

    Kernels are compiled, and judged by the compile gate, for pointers at multiples of 16 bytes; Triton would compile
    another form for other pointers, which loads less at a time.
    """
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


@dataclass(frozen=True)
class KernelVariant:
    """One form of one kernel with the types of its arguments, as the compile gate compiles it.

    Attributes:
        name: unique over the room, such as `read fp32 D=512`.
        kernel: the function under `@triton.jit`.
        signature: type of every argument that is not a constant: `*fp32`, `*bf16`, `*i32`, `i32`, `fp32`.
            Pointers count as aligned to 16 bytes, as torch allocates; `*fp32:4` says that one is not. An integer
            that is always a multiple of 16 is `i32:16`.
        constants: value of every `tl.constexpr` argument; None for a pointer that is not passed.
        options: what the launcher passes beside the arguments: `num_warps`, `num_stages`, `enable_fp_fusion`.
        moves_rows: the kernel moves table rows: it must load 16 bytes at a time and must not spill registers.
        slow: takes many seconds to compile; judged by `make test-all` only.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=lambda: {"num_warps": 4})
    moves_rows: bool = False
    slow: bool = False


def variant_of(name: str, form: KernelForm, types: Mapping[str, str], *, moves_rows: bool = False) -> KernelVariant:
    """The variant of a form whose pointers are `*fp32` and whose numbers are `i32`, but for those in `types`.

    Args:
        name: of the variant.
        form: what the launcher uses.
        types: of the parameters that differ.
        moves_rows: see `KernelVariant`.
    """
    usual = {parameter: "*fp32" if parameter.isupper() else "i32" for parameter in form.parameters}
    signature = {parameter: types.get(parameter, usual[parameter]) for parameter in usual}
    return KernelVariant(name, form.kernel, signature, form.constants, form.options, moves_rows)
