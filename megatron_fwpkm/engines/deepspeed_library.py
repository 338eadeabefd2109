"""DeepSpeed, imported so that it neither compiles anything nor fills the log."""

from __future__ import annotations

import logging
import os
from types import ModuleType

import torch

VERSION = "0.19.8"
"""The release whose options and files the engine was made for."""
_INSTALL = f"pip install 'deepspeed=={VERSION}' (or the project's extra: pip install -e '.[deepspeed]')"


def import_deepspeed(device: torch.device) -> ModuleType:
    """The package `deepspeed`, for a run on `device`.

    Raises ValueError where it is absent, of another release, or does not import.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    try:
        import deepspeed
    except ModuleNotFoundError as error:
        if error.name != "deepspeed":
            raise ValueError(
                f"--engine deepspeed: DeepSpeed lacks the package {error.name}; install it anew: {_INSTALL}"
            ) from error
        raise ValueError(f"--engine deepspeed needs DeepSpeed, which is not installed: {_INSTALL}") from error
    except Exception as error:  # whatever a broken installation raises
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"--engine deepspeed: DeepSpeed does not import ({type(error).__name__}: {first}); see tools/doctor.py"
        ) from error
    if deepspeed.__version__ != VERSION:
        raise ValueError(
            f"--engine deepspeed is made for DeepSpeed {VERSION}, and {deepspeed.__version__} is installed: {_INSTALL}"
        )
    # Shared-memory collectives for the CPU, which DeepSpeed would compile at the start of a run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("LOCAL_RANK", "0")  # set by torchrun, and missing in a run of one process
    return deepspeed
