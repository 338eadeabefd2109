"""Whether all ranks of a run were started alike: options, code, versions, libraries, variables that change numbers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist

from ..config.loading import Resolved, option_groups
from ..config.validation import problems
from ..libraries.choices import choose_libraries
from ..libraries.probes import installed
from .rendezvous import name_ranks

MAY_DIFFER = ("--num-threads", "--num-workers", "--data-cache-path", "--tensorboard-dir")
"""Options that describe a node and change no number; all others must be the same on every rank."""
PACKAGES = ("torch", "megatron-core", "numpy", "triton")
"""Libraries whose versions must be the same on every rank."""
VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TRITON_INTERPRET")
"""Environment variables that change numbers."""
_ROOT = Path(__file__).resolve().parents[1]
_NAMED = 8


def describe_start(resolved: Resolved) -> dict[str, str]:
    """Name -> value of all that must be the same on every rank."""
    described = {
        option.flag: repr(getattr(getattr(resolved.config, group), option.field_name))
        for group, _, found in option_groups()
        for option in found
        if option.flag not in MAY_DIFFER
    }
    if not problems(resolved.config):  # else every rank will say them
        chosen = choose_libraries(resolved.config, installed())
        described |= {f"the choice of {one.part}": one.shown for one in chosen}
    described["the code of megatron_fwpkm"] = _code_hash()
    described["the version of Python"] = platform.python_version()
    described |= {f"the version of {name}": package_version(name) for name in PACKAGES}
    return described | {f"the variable {name}": os.environ.get(name, "not set") for name in VARIABLES}


def check_same_start(store: dist.Store, rank: int, size: int, described: Mapping[str, str]) -> None:
    """Compare what every rank was started with; called by all ranks, before anything is built.

    Raises:
        ValueError: on every rank, the same message: what differs, with values and ranks.
    """
    prefix = f"fwpkm/start/{store.add(f'fwpkm/start/turn/{rank}', 1)}"
    text = json.dumps(dict(described), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    store.set(f"{prefix}/{digest}", text)
    store.set(f"{prefix}/{rank}", json.dumps([digest, socket.gethostname()]))
    if rank == 0:
        told = [json.loads(store.get(f"{prefix}/{other}")) for other in range(size)]
        starts = {one: json.loads(store.get(f"{prefix}/{one}")) for one, _ in told}
        store.set(f"{prefix}/verdict", _verdict([starts[one] for one, _ in told], [host for _, host in told]))
    if verdict := store.get(f"{prefix}/verdict").decode():
        raise ValueError(verdict)


def _verdict(starts: list[dict[str, str]], hosts: list[str]) -> str:
    """What differs between the starts of the ranks on their hosts; empty when nothing does."""
    if all(start == starts[0] for start in starts):
        return ""
    differences = []
    for name, by_value in values_by_rank(starts, "not known").items():
        said = [f"{value} on {_name_places(ranks, hosts)}" for value, ranks in by_value.items()]
        differences.append(f"{name} is {' and '.join(said)}")
    more = f"; and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
    return (
        f"the ranks of this run were started differently: {'; '.join(differences[:_NAMED])}{more}. Start all of them "
        "with the same command line, files, code and versions"
    )


def _name_places(ranks: list[int], hosts: list[str]) -> str:
    """`rank 3 (host-b)`; the hosts are left out where there is only one, or too many to read."""
    here = list(dict.fromkeys(hosts[rank] for rank in ranks))
    named = len(set(hosts)) > 1 and len(here) <= _NAMED
    return name_ranks(ranks) + (f" ({', '.join(here)})" if named else "")


def values_by_rank(described: list[dict[str, str]], absent: str | None) -> dict[str, dict[str, list[int]]]:
    """Name -> value -> positions in `described` of those that have it, for the names that have several values.

    A name that one lacks has the value `absent` there; where that is None, only those that have the name are compared.
    """
    found = {}
    for name in dict.fromkeys(name for one in described for name in one):
        by_value: dict[str, list[int]] = {}
        for rank, one in enumerate(described):
            value = one.get(name, absent)
            if value is not None:
                by_value.setdefault(value, []).append(rank)
        if len(by_value) > 1:
            found[name] = by_value
    return found


def _code_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(_ROOT.rglob("*.py")):
        digest.update(str(path.relative_to(_ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def package_version(package: str) -> str:
    """The installed version of a package, or that there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
