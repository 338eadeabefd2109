"""torch's flight recorder: the last collectives of every rank, in a file per rank that `torchfrtrace` compares."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch._C._distributed_c10d as c10d
import torch.distributed as dist

FILE_PREFIX = "flight_recorder_"
"""Start of every file's name; the rank follows."""
_ENTRIES = "2000"


def switch_on() -> None:
    """Let torch keep the last collectives, unless the environment says how many; before the process group is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _ENTRIES)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def dump_into(folder: Path) -> None:
    """Let NCCL write its record into `folder` when a collective times out, unless the environment names a place."""
    if not {"TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"} & os.environ.keys():
        os.environ["TORCH_FR_DUMP_TEMP_FILE"] = str(folder / FILE_PREFIX)


def dump(folder: Path, rank: int) -> Path | None:
    """Write this rank's record into `folder`; None where nothing is recorded."""
    if dist.get_backend() == "nccl":
        record = pickle.loads(c10d._dump_nccl_trace())  # type: ignore[attr-defined]
    else:
        record = pickle.loads(c10d._dump_fr_trace())  # type: ignore[attr-defined]
        # gloo registers its groups under an empty name, by which torchfrtrace cannot find them.
        record["pg_config"] = {
            name: {"name": name, "desc": group.group_desc, "ranks": str(sorted(dist.get_process_group_ranks(group)))}
            for group, name in dist.distributed_c10d._world.pg_names.items()
            if group in dist.distributed_c10d._world.pg_group_ranks
        }
    if not record.get("entries"):
        return None
    path = folder / f"{FILE_PREFIX}{rank}"
    path.write_bytes(pickle.dumps(record))
    return path


def command(folder: Path) -> str:
    """The command that compares the files of all ranks."""
    return f"`torchfrtrace -p {FILE_PREFIX} {folder}`"
