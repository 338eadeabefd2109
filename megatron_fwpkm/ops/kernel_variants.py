"""How a Triton kernel declares the forms it is launched in, so that each can be compiled and judged without a GPU.

A module with kernels ends with a tuple `KERNEL_VARIANTS` of these; `python -m benchmarks.compile_gate` finds all of
them in this room. Nothing is compiled or imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KernelVariant:
    """One form of one kernel, as its launcher specialises it.

    Attributes:
        name: unique over the room, such as ``read fp32 D=512``.
        kernel: the function under ``@triton.jit``.
        signature: type of every argument that is not a constant: ``*fp32``, ``*bf16``, ``*i32``, ``i32``, ``fp32``.
            Pointers count as aligned to 16 bytes, as torch allocates; ``*fp32:4`` says that one is not. An integer
            that is always a multiple of 16 is ``i32:16``.
        constants: value of every ``tl.constexpr`` argument; None for a pointer that is not passed.
        options: what the launcher passes beside the arguments: ``num_warps``, ``num_stages``, ``enable_fp_fusion``.
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
