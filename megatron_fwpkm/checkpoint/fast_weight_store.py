"""Fast weights of every data-parallel replica, in torch.distributed.checkpoint form, for any engine.

Keys: `layer{N}/replica{r}/{sub_keys, values}`; for bfloat16 values `.../rounding` (the seed and the number of writes so
far); where tokens wait to be written, `.../pending/{queries, targets, gates, mask}`. A tensor that a rank holds in part
(its columns or rows) is stored as one global tensor, so loading at another tensor- or pipeline-parallel size is exact.
At another data-parallel size --fwpkm-load-dp-rule says which saved replica's memory a replica takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..config import FwPKMConfig
from ..distributed.ranks import barrier, rank
from ..ops import FastWeightState, PendingTokens
from .background import request_to_save
from .store_layout import PENDING_FIELDS, key_of, replica_count, stored_tensors

DESCRIPTION_NAME = "store.json"

_RULES = {
    "modulo": "replica r loads the memory of replica r modulo {saved}",
    "replica0": "every replica loads the memory of replica 0",
    "reset": "every replica starts from the initial memory",
}
"""What --fwpkm-load-dp-rule means."""


class MemoryLayer(Protocol):
    """What the store needs of a layer with fast weights."""

    layer_number: int

    def fast_weights(self) -> FastWeightState:
        """References to this rank's tables and waiting tokens."""

    def load_fast_weights(self, state: FastWeightState) -> None:
        """Take over tables and waiting tokens."""

    def reset(self) -> None:
        """Put the initial memory back."""


def full_shapes(memory: FwPKMConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the whole tables: sub_keys [heads, 2, num_subkeys, key_dim / 2], values [num_slots, value_dim]."""
    return {
        "sub_keys": (memory.num_heads, 2, memory.num_subkeys, memory.key_dim // 2),
        "values": (memory.num_subkeys**2, memory.value_dim),
    }


@dataclass(frozen=True)
class MemoryRanks:
    """Which ranks share this rank's memories, and which replica they are."""

    replica: int
    replicas: int
    tensor_group: dist.ProcessGroup
    """Ranks that hold the columns of the values, in their order."""
    context_group: dist.ProcessGroup
    """Ranks among which every one of these parts is cut again."""
    sharing_group: dist.ProcessGroup
    """All ranks that share a memory, those of a tensor group side by side."""


class FastWeightStore:
    """Saves and loads the fast weights of a model whose engine says which ranks share a memory."""

    def __init__(self, memory: FwPKMConfig, seed: int, ranks: MemoryRanks) -> None:
        """`memory` gives the whole tables' shapes; `seed` is what the initial memory is made from."""
        self._memory = memory
        self._seed = seed
        self._ranks = ranks

    def save(self, folder: Path, layers: Sequence[MemoryLayer]) -> None:
        """Write this rank's part; called by every rank, also by one without layers (another pipeline stage)."""
        dcp.save(self._state(layers), storage_writer=dcp.FileSystemWriter(folder, thread_count=1))
        self._describe(folder)
        barrier()

    def request_to_save(self, folder: Path, layers: Sequence[MemoryLayer]) -> AsyncRequest:
        """Plan the same, for a `BackgroundWriter`; called by every rank."""
        request = request_to_save(self._state(layers), folder)
        request.add_finalize_fn(lambda: self._describe(folder))
        return request

    def _state(self, layers: Sequence[MemoryLayer]) -> dict[str, Tensor]:
        """This rank's tensors by their keys."""
        return {
            key_of(layer.layer_number, self._ranks.replica, name): self._as_global(name, local.detach().contiguous())
            for layer in layers
            for name, local in self._tensors(layer.fast_weights()).items()
        }

    def _describe(self, folder: Path) -> None:
        """Say beside the tensors what they are."""
        if rank() == 0:
            description = {
                "replicas": self._ranks.replicas,
                "tensor_parallel": self._ranks.tensor_group.size(),
                "initial_memory_seed": self._seed,
            }
            (folder / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    def load(self, folder: Path, layers: Sequence[MemoryLayer]) -> str | None:
        """Read this rank's part into `layers`; called by every rank.

        Returns a notice when the number of replicas differs from the saved one. Raises ValueError for a store without
        one of the layers or with other table sizes.
        """
        stored = stored_tensors(folder)
        replicas, mine = self._ranks.replicas, self._ranks.replica
        notice = None
        targets: list[tuple[MemoryLayer, dict[str, Tensor]]] = []
        request: dict[str, Tensor] = {}
        for layer in layers:
            saved = replica_count(stored, layer.layer_number)
            if saved == 0:
                raise ValueError(f"{folder} contains no memory for layer {layer.layer_number}")
            source = mine
            if saved != replicas:
                rule = self._memory.load_dp_rule
                meaning = _RULES[rule].format(saved=saved)
                notice = f"the number of replicas changed from {saved} to {replicas}: {meaning}"
                if rule == "reset":
                    layer.reset()
                    continue
                source = mine % saved if rule == "modulo" else 0
            local = self._allocate(layer, stored, source)
            for name, tensor in local.items():
                request[key_of(layer.layer_number, source, name)] = self._as_global(name, tensor)
            targets.append((layer, local))
        self._check_shapes(folder, stored, request)
        dcp.load(request, storage_reader=dcp.FileSystemReader(folder))
        for layer, local in targets:
            waiting = {name.removeprefix("pending/"): t for name, t in local.items() if name.startswith("pending/")}
            pending = PendingTokens(**waiting) if waiting else None
            state = FastWeightState(local["sub_keys"], local["values"], pending, local.get("rounding"))
            layer.load_fast_weights(state)
        return notice

    def _tensors(self, weights: FastWeightState) -> dict[str, Tensor]:
        """The tensors of a state by their name in the store."""
        tensors = {"sub_keys": weights.sub_keys, "values": weights.values}
        if weights.rounding is not None:
            # The third number, a rank's first column, belongs to the layout.
            tensors["rounding"] = weights.rounding[:2]
        if weights.pending is not None:
            waiting = {f"pending/{name}": getattr(weights.pending, name) for name in PENDING_FIELDS}
            tensors |= {name: tensor for name, tensor in waiting.items() if tensor is not None}
        return tensors

    def _allocate(
        self, layer: MemoryLayer, stored: dict[str, TensorStorageMetadata], replica: int
    ) -> dict[str, Tensor]:
        """Empty tensors of this rank's shapes for everything that is stored of a layer."""
        weights = layer.fast_weights()
        local = {"sub_keys": torch.empty_like(weights.sub_keys), "values": torch.empty_like(weights.values)}
        if weights.rounding is not None and key_of(layer.layer_number, replica, "rounding") in stored:
            local["rounding"] = torch.empty_like(weights.rounding[:2])
        for name in PENDING_FIELDS:
            found = stored.get(key_of(layer.layer_number, replica, f"pending/{name}"))
            if found is not None:
                shape = list(found.size)
                if name == "targets":
                    shape[-1] = weights.values.shape[-1]
                local[f"pending/{name}"] = torch.empty(
                    shape, dtype=found.properties.dtype, device=weights.values.device
                )
        return local

    def _as_global(self, name: str, local: Tensor) -> Tensor:
        """`local` as this rank's part of the whole tensor, which tensor- and context-parallel ranks share."""
        shapes = full_shapes(self._memory)
        if name == "pending/targets":
            whole: tuple[int, ...] = (*local.shape[:-1], self._memory.value_dim)
        else:
            whole = shapes.get(name, tuple(local.shape))
        size = self._ranks.sharing_group.size()
        cut = [axis for axis, (part, full) in enumerate(zip(local.shape, whole, strict=True)) if part != full]
        if not cut:
            if size == 1:
                return local
            return DTensor.from_local(local, self._mesh(local), [Replicate(), Replicate()], run_check=False)
        assert len(cut) == 1 and local.shape[cut[0]] * size == whole[cut[0]], (name, tuple(local.shape), whole, size)
        return DTensor.from_local(local, self._mesh(local), [Shard(cut[0]), Shard(cut[0])], run_check=False)

    def _mesh(self, local: Tensor) -> DeviceMesh:
        """[tensor-parallel, context-parallel] ranks: the columns of the former are cut again by the latter."""
        tensor, context = self._ranks.tensor_group, self._ranks.context_group
        ranks = dist.get_process_group_ranks(self._ranks.sharing_group)
        mesh = torch.tensor(ranks).view(context.size(), tensor.size()).t()
        return DeviceMesh.from_group([tensor, context], local.device.type, mesh, mesh_dim_names=("tensor", "context"))

    @staticmethod
    def _check_shapes(folder: Path, stored: dict[str, TensorStorageMetadata], request: dict[str, Tensor]) -> None:
        for key, tensor in request.items():
            if stored[key].size != tensor.shape:
                raise ValueError(
                    f"{folder}: {key} has shape {list(stored[key].size)}, but the model needs {list(tensor.shape)}; "
                    "check --fwpkm-num-heads, --fwpkm-num-subkeys, --fwpkm-key-dim and --fwpkm-value-dim"
                )
        assert dist.is_initialized()
