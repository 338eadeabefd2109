"""The resolved configuration in every checkpoint, read by the same parser as the command line."""

from __future__ import annotations

from pathlib import Path

from ..config import PretrainConfig
from ..config.loading import parse_pretrain
from .record import CONFIG_NAME


def read_saved_config(folder: Path) -> PretrainConfig:
    """The configuration of a checkpoint folder.

    Raises ValueError if it is missing or this version does not understand it.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{folder} is incomplete: {CONFIG_NAME} is missing; use an earlier checkpoint")
    return parse_pretrain(["--config", str(path)]).config
