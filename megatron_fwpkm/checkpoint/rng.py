"""Random number generators of one rank: python, numpy, torch (CPU and CUDA) and Megatron's tracker."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker


def rng_file(folder: Path, rank: int) -> Path:
    """Where the states of a rank are kept."""
    return folder / f"rng_{rank:05d}.pt"


def rng_state() -> dict[str, Any]:
    """All generator states of this process, as tensors and plain Python values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "megatron": {k: v.clone() for k, v in get_cuda_rng_tracker().get_states().items()},
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` gave."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    get_cuda_rng_tracker().set_states(state["megatron"])


def save_rng_state(folder: Path, rank: int) -> None:
    """Write this rank's states into a checkpoint folder."""
    torch.save(rng_state(), rng_file(folder, rank))


def load_rng_state(folder: Path, rank: int) -> None:
    """Read this rank's states from a checkpoint folder; nothing in the file is executed.

    Raises:
        ValueError: the file holds anything but tensors and plain values.
    """
    file = rng_file(folder, rank)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # it cannot be opened
            raise
        raise ValueError(
            f"{file} holds no random states: it is damaged, or holds code, which is not run; use an earlier checkpoint"
        ) from error
    set_rng_state(state)
