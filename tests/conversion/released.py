"""Folders as the authors of the paper released them, written from the reference vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import Golden


def parameters(golden: Golden) -> dict[str, Tensor]:
    """Every tensor of the model, by the authors' names."""
    return {name.removeprefix("param."): x for name, x in golden.tensors.items() if name.startswith("param.")}


def write_released(folder: Path, golden: Golden, **changes: Any) -> Path:
    """A checkpoint in one file; `changes` are keys of its configuration, gone where they are None."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in (golden.meta["config"] | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(parameters(golden), folder / "model.safetensors", {"format": "pt"})
    return folder
