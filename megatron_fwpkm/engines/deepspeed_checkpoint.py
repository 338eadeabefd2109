"""DeepSpeed's own files in a checkpoint: written by every rank, read at the same layout or, converted, at another.

folder/deepspeed/layout.json            the layout and the stage of ZeRO
folder/deepspeed/state/*.pt             as DeepSpeed writes them, for its own tools, too
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..distributed.ranks import barrier, on_rank_zero, rank
from .deepspeed_shards import own_part

FOLDER = "deepspeed"
_TAG = "state"
_LAYOUT_NAME = "layout.json"
_STATES = ("fp32", "exp_avg", "exp_avg_sq")
"""Files of a weight in DeepSpeed's universal format."""


@dataclass(frozen=True)
class ShardedLayout:
    """What DeepSpeed's files depend on."""

    zero_stage: int
    tensor_parallel: int
    data_parallel: int
    """Ranks that ZeRO shards over."""

    def __str__(self) -> str:
        """`ZeRO 1, TP 2, DP 2`."""
        return f"ZeRO {self.zero_stage}, TP {self.tensor_parallel}, DP {self.data_parallel}"


def save_state(engine: Any, folder: Path, layout: ShardedLayout, client_state: dict[str, Any]) -> None:
    """Write the state of a DeepSpeed engine into a checkpoint folder; called by every rank."""
    engine.save_checkpoint(str(folder / FOLDER), tag=_TAG, client_state=client_state, save_latest=False)
    if rank() == 0:
        text = json.dumps(asdict(layout), indent=2)
        (folder / FOLDER / _LAYOUT_NAME).write_text(text + "\n", encoding="utf-8")


def load_state(engine: Any, model: nn.Module, folder: Path, layout: ShardedLayout, room: Path) -> dict[str, Any]:
    """Read it back, at another layout through DeepSpeed's universal format; returns the client state.

    The converted files stand in `room`, a folder that all ranks see, while they are read. Called by every rank. Raises
    ValueError for a checkpoint without DeepSpeed's files, and for a layout that they cannot be converted to.
    """
    saved = _read_layout(folder)
    if _same_files(saved, layout):
        return _load(engine, folder / FOLDER, _TAG)
    if 0 in (saved.zero_stage, layout.zero_stage) or (saved.zero_stage == 3) != (layout.zero_stage == 3):
        raise ValueError(
            f"{folder} was written at {saved} and cannot be resumed at {layout}: DeepSpeed converts states of stages 1 "
            "and 2 to those two, states of stage 3 to stage 3, and none of stage 0; give --zero-stage "
            f"{saved.zero_stage}{_and_layout(saved)}, or start a new run with --load {folder} --finetune"
        )
    with _universal(model, folder / FOLDER, layout, room) as own:
        engine._config.load_universal_checkpoint = True
        try:
            client_state = _load(engine, own.parent, own.name)
        finally:
            engine._config.load_universal_checkpoint = False
    _own_steps(engine.optimizer)
    return client_state


def _load(engine: Any, folder: Path, tag: str) -> dict[str, Any]:
    path, client_state = engine.load_checkpoint(str(folder), tag=tag, load_lr_scheduler_states=False)
    if path is None:
        raise ValueError(f"{folder / tag} contains no checkpoint of DeepSpeed; use another checkpoint")
    return dict(client_state)


def _read_layout(folder: Path) -> ShardedLayout:
    path = folder / FOLDER / _LAYOUT_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} was not written by --engine deepspeed: its optimizer states cannot be read; start a new run "
            f"from its weights with --load {folder} --finetune"
        )
    return ShardedLayout(**json.loads(path.read_text(encoding="utf-8")))


def _same_files(saved: ShardedLayout, now: ShardedLayout) -> bool:
    """Whether every rank finds its own file; without sharding replicas share one."""
    if saved.zero_stage == now.zero_stage == 0:
        return saved.tensor_parallel == now.tensor_parallel
    return saved == now


def _and_layout(saved: ShardedLayout) -> str:
    """What else must be as it was."""
    return f" and --tensor-model-parallel-size {saved.tensor_parallel}" if saved.zero_stage == 0 else ""


@contextmanager
def _universal(model: nn.Module, source: Path, layout: ShardedLayout, room: Path) -> Iterator[Path]:
    """A folder with this tensor-parallel rank's part in the universal format, for as long as the context lasts."""
    whole = room / ".deepspeed_universal"
    on_rank_zero(lambda: _convert(source / _TAG, whole))
    unit: Any = model.pg_collection
    own = whole / f"tensor_rank_{unit.tp.rank()}"
    if unit.dp_cp.rank() == 0:
        _cut(model, whole / _TAG, own, unit.tp.rank(), unit.tp.size(), layout.zero_stage)
    barrier()
    try:
        yield own
    finally:
        barrier()
        if rank() == 0:
            shutil.rmtree(whole, ignore_errors=True)


def _convert(source: Path, target: Path) -> None:
    """DeepSpeed's files of all ranks to whole weights and states, on one rank."""
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(target, ignore_errors=True)
    options = {
        "input_folder": str(source),
        "output_folder": str(target / _TAG),
        "num_extract_workers": 1,
        "num_merge_workers": 1,
        "keep_temp_folder": False,
        "strict": True,
        "inject_missing_state": False,
    }
    try:
        (target / _TAG).mkdir(parents=True)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ds_to_universal.main(Namespace(**options))
    except AssertionError as error:
        raise ValueError(
            f"{source} cannot be converted for this layout: DeepSpeed's converter finds replicated weights that differ "
            "between tensor-parallel ranks; resume it at the layout that it was written at"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{source} must be converted for this layout, and {target} cannot be written: {error.strerror}; give a "
            "--save folder with room for another copy of the optimizer states"
        ) from error


def _cut(model: nn.Module, whole: Path, own: Path, tensor_rank: int, tensor_size: int, zero_stage: int) -> None:
    """One tensor-parallel rank's part of whole weights and states, in files as a run at `zero_stage` names them.

    DeepSpeed would cut them itself, but not for ZeRO-3, nor a vocabulary of another padding.
    """
    shutil.rmtree(own, ignore_errors=True)
    for name, parameter in model.named_parameters():
        folder = own / "zero" / name
        folder.mkdir(parents=True)
        for state in _STATES:
            read = torch.load(whole / "zero" / name / f"{state}.pt", weights_only=False)
            tensor = read["param"] if isinstance(read, dict) else read
            torch.save({"param": own_part(name, parameter, tensor, tensor_rank, tensor_size)}, folder / f"{state}.pt")
        step = whole / "zero" / name / "step.pt"
        if step.is_file():
            shutil.copyfile(step, folder / "step.pt")
    shutil.copyfile(whole / "zero" / "optimizer_state.pt", own / "zero" / "optimizer_state.pt")
    # Of these, one per tensor-parallel rank that saved, only counters and the client state are read.
    for described in sorted(whole.glob("*_model_states.pt")):
        name = described.name[described.name.index("mp_rank_") :]
        link = own / (f"zero_pp_rank_0_{name}" if zero_stage == 3 else name)
        if not link.is_symlink():
            link.symlink_to(described.resolve())


def _own_steps(optimizer: Any) -> None:
    """Give every state a step of its own: loading gives all of them one tensor, which each would advance."""
    for state in optimizer.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
