"""Which data-parallel replicas' memories a checkpoint contains: --fwpkm-save-replicas, and one copy after averaging."""

from __future__ import annotations

from .fwpkm import FwPKMConfig


def replicas_to_save(fwpkm: FwPKMConfig, replicas: int) -> tuple[int, ...]:
    """Numbers of the replicas whose tables are saved: the first one, and others at equal distances.

    Spread, because consecutive replicas share a node: so the nodes write side by side.
    """
    count = replicas if fwpkm.save_replicas == "all" else min(int(fwpkm.save_replicas), replicas)
    return tuple(number * replicas // count for number in range(count))


def averaged_after(fwpkm: FwPKMConfig, iteration: int) -> bool:
    """Whether --fwpkm-dp-sync has given all replicas the same tables at the end of an iteration."""
    return fwpkm.dp_sync == "average" and iteration > 0 and iteration % fwpkm.dp_sync_interval == 0
