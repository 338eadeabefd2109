"""Which checkpoint a run starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import CheckpointConfig
from .manager import folder_name, latest_checkpoint, published, resolve_checkpoint
from .record import RECORD_NAME


@dataclass(frozen=True)
class Source:
    """A checkpoint that a run starts from."""

    folder: Path
    resumed: bool
    """Whether it is the run's own, in --save."""
    passed_over: tuple[str, ...] = ()
    """Names of newer checkpoints beside it, which --ckpt-step passes over."""


def find_source(chosen: CheckpointConfig) -> Source | None:
    """The checkpoint that --resume, --load and --ckpt-step select; None if the run starts from scratch.

    Raises ValueError if it does not exist; with --exit-on-missing-checkpoint also if --resume finds none.
    """
    if chosen.resume and chosen.save is not None:
        root = Path(chosen.save)
        step = chosen.ckpt_step if chosen.load is None else None  # where a run is named, it is that one's step
        found = latest_checkpoint(root) if step is None else _of_step(root, step)
        if found is not None:
            newer = [path.name for path in published(root) if path.name > found.name] if step is not None else []
            return Source(found, resumed=True, passed_over=tuple(newer))
    if chosen.load is not None:
        return Source(_named(Path(chosen.load), chosen.ckpt_step), resumed=False)
    if chosen.resume and chosen.exit_on_missing_checkpoint:
        raise ValueError(
            f"--save {chosen.save} contains no checkpoint to --resume from, and --exit-on-missing-checkpoint forbids a "
            "new run: use another folder, or remove that flag"
        )
    return None


def _named(path: Path, step: int | None) -> Path:
    """The checkpoint that --load names, or the latest of a run, or that of iteration `step`."""
    if step is None or not path.is_dir():
        return resolve_checkpoint(path)
    if (path / RECORD_NAME).is_file():
        raise ValueError(
            f"--ckpt-step {step} selects a checkpoint of a run, but --load {path} is already a single checkpoint: "
            f"use --load {path.parent}, or remove --ckpt-step"
        )
    return _of_step(path, step)


def _of_step(root: Path, step: int) -> Path:
    folders = {path.name: path for path in published(root)}
    if folder_name(step) not in folders:
        there = f"only {', '.join(folders)}; use one of these iterations" if folders else "and no other checkpoint"
        raise ValueError(f"--ckpt-step {step}: {root} contains no {folder_name(step)}, {there}")
    return folders[folder_name(step)]
