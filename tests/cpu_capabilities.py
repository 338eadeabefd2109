"""Prints the values of ATEN_CPU_CAPABILITY that this CPU has, for `make test-all`; those it lacks go to stderr.

PyTorch has its CPU kernels several times, for sets of vector instructions, and rounds sums differently in each. The
variable chooses one; PyTorch does not check that the CPU has it, and would die of an illegal instruction.
"""

from __future__ import annotations

import os
import platform
import sys

X86 = ("default", "avx2", "avx512")


def capabilities(machine: str, best: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Values that the CPU has, and those of its kind that it lacks.

    Args:
        machine: `platform.machine()`.
        best: what PyTorch chooses by itself, `torch.backends.cpu.get_cpu_capability()`.
    """
    own = best.lower().replace(" ", "")  # "Z VECTOR" is set as zvector
    if machine.lower() in ("x86_64", "amd64"):
        count = X86.index(own) + 1 if own in X86 else 1
        return X86[:count], X86[count:]
    return tuple(dict.fromkeys(("default", own))), ()


def main() -> None:
    """A value per line."""
    os.environ.pop("ATEN_CPU_CAPABILITY", None)
    import torch

    there, lacking = capabilities(platform.machine(), torch.backends.cpu.get_cpu_capability())
    for value in lacking:
        print(f"ATEN_CPU_CAPABILITY={value} is left out: this CPU does not have it", file=sys.stderr)
    print("\n".join(there))


if __name__ == "__main__":
    main()
