"""What differs between nodes that must be alike. Pure functions on what the ranks have said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..config.loading import Resolved
from ..distributed.same_start import PACKAGES, describe_start, package_version, values_by_rank
from .clock import TOLERANCE_SECONDS
from .exchange import Words
from .trouble import Trouble, name_nodes

_MORE_PACKAGES = ("deepspeed", "transformer-engine", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
_VARIABLES = ("NCCL_", "TORCH_", "CUDA_DEVICE_MAX_CONNECTIONS")
_OF_A_NODE = ("NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_DEBUG", "NCCL_DEBUG_FILE", "NCCL_HOSTID", "NCCL_TOPO_FILE",
              "TORCH_HOME", "TORCH_EXTENSIONS_DIR")  # fmt: skip
"""Variables that may describe the hardware or the disks of one node."""
_ADVICE = "start all nodes with the same command line, files, code and versions"
_LIKE_NODES = {"the git commit", "the NVIDIA driver", "the GPUs"}
"""What may differ without changing a number."""


def describe(resolved: Resolved, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Name -> value of all that must be the same on every rank: what a run compares at its start, and more."""
    found = describe_start(resolved) | {f"the version of {name}": package_version(name) for name in _MORE_PACKAGES}
    found["the git commit"] = git_commit(Path(__file__).resolve().parents[2])
    return found | {
        f"the variable {name}": value
        for name, value in environment.items()
        if name.startswith(_VARIABLES) and name not in _OF_A_NODE
    }


def versions(described: Mapping[str, str]) -> dict[str, str]:
    """The versions among what `describe` gives, by package, for the report."""
    names = ("Python", *PACKAGES, *_MORE_PACKAGES)
    told = {name: described.get(f"the version of {name}", "not installed") for name in names}
    return {name: version for name, version in told.items() if version != "not installed"}


def git_commit(folder: Path) -> str:
    """The commit that is checked out in a folder; `none` without git."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none"


def compare(words: Words, hosts: Mapping[int, str]) -> list[Trouble]:
    """All that is wrong, by the words of all ranks: their own troubles first, then what differs."""
    found = []
    for word in words:
        for trouble in word.get("troubles", ()):
            place = f"{name_nodes([word['node']], hosts)}: {trouble['what']}"
            found.append(Trouble(place, trouble["advice"], trouble["fatal"]))
    starts = [word["start"] for word in words]
    found += _differences(starts, [word["node"] for word in words], hosts, _ADVICE, "not set")
    first = [word for word in words if "files" in word]
    nodes = [word["node"] for word in first]
    shared = [word["files"] for word in first]
    found += _differences(shared, nodes, hosts, "copy the same file to every node, or mount the same folder", None)
    hardware = [{"the NVIDIA driver": w["driver"] or "none", "the GPUs": ", ".join(w["gpus"]) or "none"} for w in first]
    found += _differences(hardware, nodes, hosts, "the slowest node sets the pace of all", "none")
    places = [{"the folder for --save": word["save_place"] or "none"} for word in first]
    found += _differences(places, nodes, hosts, "mount the same file system on every node", "none")
    return found


def compare_clocks(offsets: Mapping[int, float], hosts: Mapping[int, str]) -> Iterator[Trouble]:
    """Clocks that are too far from that of node 0."""
    for node, offset in offsets.items():
        if abs(offset) > TOLERANCE_SECONDS:
            side = "ahead of" if offset > 0 else "behind"
            yield Trouble(
                f"the clock of {name_nodes([node], hosts)} is {abs(offset):.1f} s {side} "
                f"that of {name_nodes([0], hosts)} (tolerance {TOLERANCE_SECONDS:g} s)",
                "let chrony or ntpd set it",
            )


def _differences(
    values: list[dict[str, str]], nodes: list[int], hosts: Mapping[int, str], advice: str, absent: str | None
) -> Iterator[Trouble]:
    """A trouble for every name with several values; a name that a node lacks is skipped where `absent` is None."""
    for name, by_value in values_by_rank(values, absent).items():
        said = [
            f"{value} on {name_nodes([nodes[rank] for rank in ranks], hosts)}" for value, ranks in by_value.items()
        ]
        yield Trouble(f"{name} is {' and '.join(said)}", advice, fatal=name not in _LIKE_NODES)
