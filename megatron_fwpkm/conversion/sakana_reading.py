"""Reads the files of a checkpoint that the paper's authors released: a folder as Transformers writes it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..hf import FwPKMHFConfig
from ..hf.stored_weights import stored_tensors

PICKLED = "pytorch_model.bin"
WANTED = "--checkpoint must be a folder with config.json and the weights that the authors released"


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
        ValueError: the folder is not one of their checkpoints, with what it is where that can be told.
    """
    file = folder / "config.json"
    if not file.is_file():
        ours = any(folder.glob("iter_*")) or folder.name.startswith("iter_")
        advice = "it looks like a checkpoint of a run, for which there is the command export" if ours else WANTED
        raise ValueError(f"{folder} {'contains no config.json' if folder.is_dir() else 'is not a folder'}; {advice}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}; copy the folder again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it does not contain a JSON object; copy the folder again")
    if found.get("model_type") == FwPKMHFConfig.model_type:
        raise ValueError(f"{folder} is an export of this package already; use it as it is")
    if not any(name.startswith(("fwpkm_", "pkm_")) for name in found):
        kind = found.get("model_type")
        raise ValueError(f"{file} describes a model without memories (model_type {kind!r}); {WANTED}")
    return found


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name, on the CPU.

    Raises:
        ValueError: there are no weights, or a file is missing or damaged.
    """
    stored = stored_tensors(folder, {})
    if stored:
        files = sorted({tensor.file for tensor in stored.values()})
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    file = folder / PICKLED
    if not file.is_file():
        raise ValueError(
            f"{folder} contains no weights: neither model.safetensors, nor model.safetensors.index.json, nor {PICKLED}"
        )
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} cannot be read as weights alone ({reason}); copy the folder again") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"{file} does not contain tensors by name; it must be what Transformers writes")
    return found
