"""Random number generators of one rank: Python, NumPy, torch (CPU and CUDA), and those of the engine."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

_ENGINE = "megatron"
"""Key of the engine's states; its name is that of the first engine, whose checkpoints have it."""


def rng_file(folder: Path, rank: int) -> Path:
    """Where the states of a rank are kept."""
    return folder / f"rng_{rank:05d}.pt"


def rng_state() -> dict[str, Any]:
    """The generator states of this process, without the engine's own, as tensors and plain Python values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def save_rng_state(folder: Path, rank: int, engine_state: dict[str, Any]) -> None:
    """Write this rank's states and the engine's own into a checkpoint folder."""
    torch.save({**rng_state(), _ENGINE: engine_state}, rng_file(folder, rank))


def load_rng_state(folder: Path, rank: int) -> dict[str, Any]:
    """Restore this rank's states from a checkpoint folder; returns the engine's own. Nothing in the file is executed.

    Raises:
        ValueError: the file contains anything but tensors and plain values.
    """
    file = rng_file(folder, rank)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # it cannot be opened
            raise
        raise ValueError(
            f"{file} contains no random states: it is damaged, or contains code, which is never executed; use an "
            "earlier checkpoint"
        ) from error
    set_rng_state(state)
    own: dict[str, Any] = state[_ENGINE]
    return own
