"""What a launcher says of this process: torchrun's environment variables, read and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ADVICE = "start the run with torchrun (examples/launch), which sets them all"
LAST_PORT = 65535


@dataclass(frozen=True)
class Launch:
    """This process among those of a run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    store_in_agent: bool
    """Whether torchrun's agent, and not rank 0, holds the store in which the ranks meet."""
    by_torchrun: bool = False
    """Whether the parent is an agent of torchrun, without which the other nodes do not know of this rank."""
    attempt: int = 0
    """How often torchrun has started its workers again; an agent's store keeps what earlier ones left there."""

    @property
    def meeting_place(self) -> str:
        """Address and port of the rendezvous, `MASTER_ADDR:MASTER_PORT`."""
        return f"{self.master_addr}:{self.master_port}"

    @property
    def nodes(self) -> int:
        """Number of nodes of the run."""
        return -(-self.world_size // self.local_world_size)

    def node_of(self, rank: int) -> int:
        """Number of the node on which a rank runs; every node has as many ranks as this one."""
        return rank // self.local_world_size


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """The launch that `environment` describes; None for a process that runs alone.

    Raises:
        ValueError: a variable is missing or is no number of its range, or the process is a task of Slurm or MPI to
            which nobody gave a rank. Such a process would train alone, or wait for ever.
    """
    world_size = read_number(environment, "WORLD_SIZE", 1)
    if "RANK" not in environment and (world_size or 1) == 1:
        _check_not_one_of_many(environment)
        return None
    if world_size is None:
        raise ValueError(f"RANK={environment['RANK']} is set but WORLD_SIZE is not; {_ADVICE}")
    rank = read_number(environment, "RANK", 0)
    if rank is None:
        raise ValueError(
            f"WORLD_SIZE={world_size} is set but RANK is not, so each of these processes would train alone; {_ADVICE}, "
            "or unset WORLD_SIZE for a run of one process"
        )
    if rank >= world_size:
        raise ValueError(f"RANK={rank} must be less than WORLD_SIZE={world_size}: ranks start at 0")
    if world_size == 1 and not environment.get("MASTER_ADDR"):
        return None
    local_world_size = read_number(environment, "LOCAL_WORLD_SIZE", 1) or 1
    local_rank = read_number(environment, "LOCAL_RANK", 0) or 0
    if "LOCAL_WORLD_SIZE" in environment and local_rank >= local_world_size:
        raise ValueError(f"LOCAL_RANK={local_rank} must be less than LOCAL_WORLD_SIZE={local_world_size}")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise ValueError(
            f"RANK={rank} and WORLD_SIZE={world_size} are set but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not: the ranks do not know where to meet; {_ADVICE}"
        )
    port = read_master_port(environment)
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(
        rank,
        world_size,
        local_rank,
        local_world_size,
        environment["MASTER_ADDR"],
        port,
        store_in_agent=agent,
        by_torchrun="TORCHELASTIC_RUN_ID" in environment,
        attempt=read_number(environment, "TORCHELASTIC_RESTART_COUNT", 0) or 0,
    )


def read_master_port(environment: Mapping[str, str]) -> int:
    """MASTER_PORT, which is set; raises ValueError for what is no port."""
    port = read_number(environment, "MASTER_PORT", 1)
    if port is None or port > LAST_PORT:
        raise ValueError(f"MASTER_PORT={port} must be between 1 and {LAST_PORT}")
    return port


def read_number(environment: Mapping[str, str], name: str, least: int) -> int | None:
    """An integer variable, None where it is not set; raises ValueError for what is no integer of at least `least`."""
    text = environment.get(name)
    if text is None:
        return None
    if not text.strip().isascii() or not text.strip().removeprefix("-").isdigit():
        raise ValueError(f"the environment variable {name}={text!r} is not an integer; {_ADVICE}")
    if int(text) < least:
        raise ValueError(f"the environment variable {name}={text} must be at least {least}; {_ADVICE}")
    return int(text)


def _check_not_one_of_many(environment: Mapping[str, str]) -> None:
    for name, launcher in (("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")):
        tasks = environment.get(name, "")
        if tasks.isdigit() and int(tasks) > 1:
            raise ValueError(
                f"{launcher} started {tasks} tasks ({name}={tasks}) but RANK is not set, so each of them would train "
                "alone; start the run with examples/launch/slurm.sbatch, which gives every task its rank"
            )
