"""How Triton kernels are launched, and the forms of each that the compile gate judges without a GPU.

A form (`KernelForm`) says with which constants and how many warps a kernel is compiled. Constants and what a launch
computes with are given in records, mappings from the names of the kernels' parameters; of these a kernel takes what it
names. A module of variants ends with a tuple `KERNEL_VARIANTS`; `python -m benchmarks.compile_gate` finds all of them
in this room. Nothing is compiled here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KernelForm:
    """A kernel as it is compiled for one kind of launch. Those who launch often keep it: it knows what was compiled.

    Attributes:
        kernel: the function under `@triton.jit`.
        constants: value of every `tl.constexpr` parameter, and None for a pointer that is not passed.
        num_warps: of a program.
    """

    kernel: Any
    constants: Mapping[str, Any]
    num_warps: int
    _compiled: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, kernel: Any, constants: Mapping[str, Any], num_warps: int, absent: Iterable[str] = ()) -> KernelForm:
        """The form with those of the constants that the kernel names, and those of the `absent` pointers."""
        known = {**constants, **dict.fromkeys(absent)}
        return cls(kernel, {name: known[name] for name in kernel.arg_names if name in known}, num_warps)

    @cached_property
    def options(self) -> dict[str, Any]:
        """What is passed beside the arguments. Products are rounded before they are added, as in the interpreter."""
        return {"num_warps": self.num_warps, "enable_fp_fusion": False}

    @cached_property
    def parameters(self) -> list[str]:
        """Names of what every launch must be given."""
        return [name for name in self.kernel.arg_names if name not in self.constants]

    @cached_property
    def _places(self) -> list[int]:
        """Where the parameters stand among all of the kernel's."""
        return [place for place, name in enumerate(self.kernel.arg_names) if name not in self.constants]

    @cached_property
    def _by_value(self) -> list[bool]:
        """Of which parameters a number is more than a type to Triton, which is told so by `do_not_specialize`."""
        told = {parameter.name: parameter.do_not_specialize for parameter in getattr(self.kernel, "params", ())}
        return [not told.get(name, False) for name in self.parameters]

    @cached_property
    def _all_arguments(self) -> list[Any]:
        """The constants where they stand among all of the kernel's parameters."""
        return [self.constants.get(name) for name in self.kernel.arg_names]

    def launch(self, grid: tuple[int, ...], *records: Mapping[str, Any]) -> None:
        """Run the kernel on the device of its tensors, which Triton would run on the current one.

        Args:
            grid: number of programs in every dimension.
            records: arguments by the names of the kernel's parameters; the last record that has a name counts, and
                what the kernel does not name is left out.
        """
        known: dict[str, Any] = {}
        for record in records:
            known.update(record)
        arguments = [known[name] for name in self.parameters]
        index = next(value.get_device() for value in arguments if isinstance(value, Tensor))
        if index < 0 or index == torch.cuda.current_device():  # on the CPU it is -1
            self._run(grid, index, arguments)
            return
        with torch.cuda.device(index):
            self._run(grid, index, arguments)

    def _run(self, grid: tuple[int, ...], index: int, arguments: list[Any]) -> None:
        """Let Triton find or compile the kernel for such arguments the first time, and launch what it gave afterwards.

        Finding it takes Triton longer than launching it. What Triton gave is launched without the kernel's
        `pre_run_hooks`; ours have none.
        """
        kind = self._kind(index, arguments)
        compiled = self._compiled.get(kind)
        if compiled is None:
            named = dict(zip(self.parameters, arguments, strict=True))
            compiled = self.kernel[grid](**named, **self.constants, **self.options)
            if compiled is not None:  # the interpreter gives nothing
                self._compiled[kind] = compiled
            return
        every = self._all_arguments.copy()
        for place, value in zip(self._places, arguments, strict=True):
            every[place] = value
        compiled[(*grid, 1, 1)[:3]](*every)

    def _kind(self, index: int, arguments: list[Any]) -> tuple[Any, ...]:
        """What Triton compiles another kernel for, beside constants."""
        kind: list[Any] = [index]
        bits = 0
        for value, by_value in zip(arguments, self._by_value, strict=True):
            if isinstance(value, Tensor):
                bits |= value.data_ptr()
                kind.append(value.dtype)
            elif by_value:
                kind.append(value)
            else:
                kind.append(-(2**31) <= value < 2**31 if isinstance(value, int) else type(value))
        kind.append(bits % 16 == 0 or tuple(x.data_ptr() % 16 for x in arguments if isinstance(x, Tensor)))
        return tuple(kind)


def next_power_of_2(number: int) -> int:
    """The least power of 2 that is not less; Triton's own takes the host several microseconds."""
    return 1 << (number - 1).bit_length()


def cdiv(number: int, divisor: int) -> int:
    """The quotient, rounded up; see `next_power_of_2`."""
    return -(-number // divisor)


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
        moves_rows: the kernel moves table rows: it must load and store 16 bytes at a time.
        may_spill: registers that are spilled are recorded and break no rule.
        slow: takes many seconds to compile; judged by `make test-all` only.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=lambda: {"num_warps": 4})
    moves_rows: bool = False
    may_spill: bool = False
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
