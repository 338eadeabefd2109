"""The device that is measured: its name, its clock, its copy bandwidth, its memory."""

from __future__ import annotations

import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 2**30
COPY_BYTES = {"cuda": 2 * GIB, "cpu": GIB // 4}


def resolve(name: str) -> str:
    """The torch device that `--device` means: `auto` is cuda where there is one.

    Raises:
        RuntimeError: the device is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(f"--device {name} is not there; --device cpu measures the same on the CPU")
    return name


def title(device: str) -> str:
    """What the device is called."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "one CPU thread"


def time_calls(call: Callable[[], Any], device: str, repeats: int, warm_up: int = 1) -> list[float]:
    """Milliseconds of each call: of the device's clock on CUDA, CPU time of this process elsewhere."""
    import torch

    for _ in range(warm_up):
        call()
    found = []
    for _ in range(repeats):
        if device.startswith("cuda"):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize(device)
            found.append(start.elapsed_time(end))
        else:
            begin = time.process_time()
            call()
            found.append(1e3 * (time.process_time() - begin))
    return found


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of copying a large tensor: the measure of everything that moves rows."""
    import torch

    size = COPY_BYTES[device.split(":")[0]]
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    milliseconds = time_calls(lambda: target.copy_(source), device, repeats=10, warm_up=3)
    return 2 * size / (1e-3 * statistics.median(milliseconds))


def reset_peak(device: str) -> None:
    """Forget the peak so far, where the device can."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: str) -> int:
    """Peak allocated bytes on CUDA since `reset_peak`; elsewhere the peak of the whole process since it began."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    # Of this program alone: what getrusage tells begins with the peak of the process that started it.
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
