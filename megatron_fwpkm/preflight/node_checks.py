"""What the first rank of a node says of the node: what is there, and what is wrong with it by itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config import PretrainConfig
from ..config.checkpoint_size import checkpoint_bytes, checkpoints_on_disk
from ..config.validation import problems
from ..data.indexed.blends import parse_blend
from ..data.indexed.indexed_format import read_dataset_info
from ..data.tokenizers import build_tokenizer
from ..distributed.launch_variables import Launch
from ..distributed.startup import World
from ..engines.build import check_installed
from ..libraries.choices import check_choices, choose_libraries
from ..libraries.probes import installed
from .trouble import Trouble

_READ_BYTES = 2**22
_LEAST_FREE_BYTES = 2**30
_NVIDIA_SMI = (
    "nvidia-smi", "--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits"
)  # fmt: skip
_MOST_USED_SHARE = 0.05


@dataclass
class NodeReport:
    """What a node has, and its troubles."""

    gpus: list[str] = field(default_factory=list)
    """Name and memory of every GPU."""
    driver: str = ""
    free: dict[str, int] = field(default_factory=dict)
    """Free bytes by folder."""
    files: dict[str, str] = field(default_factory=dict)
    """Size and digest of the files that all nodes read."""
    save_place: str | None = None
    """The existing folder in or above --save in which files were written and read."""
    troubles: list[Trouble] = field(default_factory=list)


class NodeChecks:
    """The checks of one node, one after the other; `doing` says which is under way."""

    def __init__(self, config: PretrainConfig, launch: Launch, processes: int | None, processes_here: int) -> None:
        """Nothing is looked at yet; `processes` are those of the whole run, where that is known."""
        self.doing = "looking at this node"
        self.report = NodeReport()
        self._config, self._launch, self._processes, self._processes_here = config, launch, processes, processes_here
        self._vocab_size: int | None = None

    def run(self) -> NodeReport:
        """All checks; none of them raises for what it finds."""
        checks: dict[str, Callable[[], Iterator[Trouble]]] = {
            "checking the configuration": self._configuration,
            "asking the driver for GPUs": self._gpus,
            "reading the data": self._data,
            "reading the tokenizer": self._tokenizer,
            f"writing to --save {self._config.checkpoint.save}": self._save_folder,
            "writing to the folder of temporary files": self._temporary_folder,
        }
        for self.doing, check in checks.items():
            try:
                self.report.troubles += check()
            except (OSError, ValueError, ModuleNotFoundError) as error:
                advice = "see whether a program of this node can do it"
                self.report.troubles.append(Trouble(f"{self.doing} failed ({error})", advice))
        return self.report

    def _configuration(self) -> Iterator[Trouble]:
        launch, config = self._launch, self._config
        found = problems(config, self._processes)
        yield from (Trouble(line, "pretrain.py would refuse it") for line in found)
        if found:
            return
        on_gpu = torch.cuda.is_available()
        world = World(launch.rank, launch.world_size, torch.device("cuda" if on_gpu else "cpu"))
        try:
            check_choices(choose_libraries(config, installed()))
            check_installed(config, world)
        except ValueError as error:
            yield Trouble(str(error), "pretrain.py would refuse it")

    def _gpus(self) -> Iterator[Trouble]:
        if not torch.cuda.is_available():
            if shutil.which("nvidia-smi") or torch.version.cuda:
                yield Trouble("torch finds no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES", fatal=False)
            return
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        self.report.gpus = [f"{one.name} {one.total_memory / 2**30:.0f} GiB" for one in found]
        if len(found) < self._processes_here:
            yield Trouble(
                f"{self._processes_here} processes for {len(found)} GPUs",
                "start one process per GPU, or see why the others are not there (nvidia-smi, CUDA_VISIBLE_DEVICES)",
            )
        for index, line in enumerate(_nvidia_smi()):
            name, total, used, self.report.driver = line
            if float(used) > _MOST_USED_SHARE * float(total):
                yield Trouble(
                    f"GPU {index} ({name}) has {used} of {total} MiB in use already",
                    "end the program that holds them (nvidia-smi lists it)",
                    fatal=False,
                )

    def _data(self) -> Iterator[Trouble]:
        for prefix in data_prefixes(self._config):
            try:
                read_dataset_info(prefix)
                for suffix in (".bin", ".idx"):
                    self.report.files[prefix + suffix] = fingerprint(Path(prefix + suffix))
            except (OSError, ValueError) as error:
                why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
                yield Trouble(f"the dataset {prefix} cannot be read ({why})", "copy or mount it on this node")

    def _tokenizer(self) -> Iterator[Trouble]:
        data = self._config.data
        try:
            self._vocab_size = build_tokenizer(data).vocab_size
        except (OSError, ValueError) as error:
            yield Trouble(f"the tokenizer cannot be read ({error})", "copy or mount it on this node")
            return
        path = Path(data.tokenizer_model or "")
        if path.is_file():
            self.report.files[str(path)] = fingerprint(path)

    def _save_folder(self) -> Iterator[Trouble]:
        if self._config.checkpoint.save is None:
            return
        place = existing_folder(Path(self._config.checkpoint.save))
        self.report.save_place = str(place)
        yield from self._writing(place, f"--save {self._config.checkpoint.save}")
        yield from self._room_for_checkpoints(place)

    def _room_for_checkpoints(self, place: Path) -> Iterator[Trouble]:
        """One must fit; whether all do is not known, for some may be there already and make room."""
        if self._vocab_size is None or self._processes is None or list(problems(self._config, self._processes)):
            return  # said already
        one = checkpoint_bytes(self._config, self._vocab_size, self._processes).total
        most, free = checkpoints_on_disk(self._config), self.report.free[str(place)]
        if free < most * one:
            kept = "a checkpoint" if free < one or most == 1 else f"the {most} checkpoints that the run keeps at once"
            needed = one if free < one else most * one
            yield Trouble(
                f"--save {self._config.checkpoint.save} needs {gib(needed)} for {kept}, and {gib(free)} are free",
                "make room, or keep fewer (--keep-last, --fwpkm-save-replicas)",
                fatal=free < one,
            )

    def _temporary_folder(self) -> Iterator[Trouble]:
        yield from self._writing(Path(tempfile.gettempdir()), "temporary files (TMPDIR)")

    def _writing(self, place: Path, use: str) -> Iterator[Trouble]:
        self.report.free[str(place)] = free = shutil.disk_usage(place).free
        if free < _LEAST_FREE_BYTES:
            yield Trouble(
                f"{place}, for {use}, has only {free / 2**20:.0f} MiB free",
                "make room; `pretrain.py --dry-run` shows what a checkpoint takes",
            )
        try:
            write_and_rename(place)
        except OSError as error:
            yield Trouble(
                f"{place}, for {use}, cannot be written ({error.strerror})", "check permissions, quota and the mount"
            )


def gib(size: int) -> str:
    """Bytes in GiB, for people."""
    return f"{size / 2**30:,.1f} GiB"


def data_prefixes(config: PretrainConfig) -> list[str]:
    """Every dataset prefix that the run reads; raises ValueError for a blend that is none."""
    data = config.data
    flags = ("data_path", "train_data_path", "valid_data_path", "test_data_path")
    blends = [parse_blend("--" + name.replace("_", "-"), getattr(data, name)) for name in flags]
    return list(dict.fromkeys(prefix for blend in blends if blend is not None for prefix in blend[0]))


def fingerprint(path: Path) -> str:
    """Size of a file and a digest of its first and last 4 MiB; times and owners do not matter."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_READ_BYTES))
        if size > _READ_BYTES:
            file.seek(max(_READ_BYTES, size - _READ_BYTES))
            digest.update(file.read(_READ_BYTES))
    return f"{size:,} bytes ({digest.hexdigest()[:12]})"


def existing_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def write_and_rename(folder: Path) -> None:
    """Do what saving does: write, force to disk, rename. Raises OSError; leaves nothing behind."""
    first = folder / f".preflight-{uuid.uuid4().hex}"
    second = first.with_suffix(".renamed")
    try:
        with first.open("wb") as file:
            file.write(os.urandom(2**16))
            file.flush()
            os.fsync(file.fileno())
        first.rename(second)
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)


def _nvidia_smi() -> list[list[Any]]:
    """Name, MiB in all, MiB in use and driver of every GPU, where the program is installed and answers."""
    try:
        told = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [parts for line in told.splitlines() if len(parts := [part.strip() for part in line.split(",")]) == 4]
