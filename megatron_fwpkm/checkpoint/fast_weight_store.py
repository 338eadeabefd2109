"""Fast weights of every data-parallel replica, in torch.distributed.checkpoint form, for any engine.

Keys: `layer{N}/replica{r}/` and the name of a fast weight, such as `values`; for bfloat16 values `.../rounding` (the
seed and the number of writes so far); where tokens wait to be written, `.../pending/{queries, targets, gates, mask}`. A
tensor that a rank holds in part (its columns or rows) is stored as one global tensor, so loading at another tensor- or
pipeline-parallel size is exact. --fwpkm-save-replicas may leave out tables of replicas. A replica without any takes
those that --fwpkm-load-dp-rule says, as do all at another data-parallel size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..config import FwPKMConfig
from ..config.saved_replicas import replicas_to_save
from ..distributed.ranks import barrier, rank
from ..ops import PendingTokens
from .background import request_to_save
from .store_layout import (
    PENDING_FIELDS,
    StoreDescription,
    key_of,
    name_of,
    read_description,
    replicas_with_tables,
    stored_tensors,
)

logger = logging.getLogger("megatron_fwpkm")

_RULES = {
    "modulo": "replica r loads the saved memory r modulo {saved}",
    "replica0": "every replica loads the memory of replica 0",
    "reset": "every replica starts from the initial memory",
}
"""What --fwpkm-load-dp-rule means."""


class State(Protocol):
    """The fast weights of a memory of any kind, and its tokens that wait."""

    @property
    def pending(self) -> PendingTokens | None:
        """Tokens that wait to be written."""

    @property
    def rounding(self) -> Tensor | None:
        """What the rounding of bfloat16 tables depends on."""

    def tables(self) -> dict[str, Tensor]:
        """This rank's parts of the fast weights by name."""

    def with_tables(
        self, tables: Mapping[str, Tensor], pending: PendingTokens | None, rounding: Tensor | None = None
    ) -> Any:
        """A state of the same kind from fast weights by name."""


class MemoryLayer(Protocol):
    """What the store needs of a layer with fast weights."""

    layer_number: int

    def fast_weights(self) -> State:
        """References to this rank's tables and waiting tokens."""

    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tables of all ranks that share them, by name, and that of one token's target as `target`."""

    @property
    def target_width(self) -> int:
        """Columns of a waiting token's target on this rank."""

    def load_fast_weights(self, state: Any) -> None:
        """Take over tables and waiting tokens, as `fast_weights` gives them."""

    def reset(self) -> None:
        """Put the initial memory back."""


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
        """`memory` says which replicas are saved and loaded; `seed` is what the initial memory is made from."""
        self._memory = memory
        self._seed = seed
        self._ranks = ranks

    def save(self, folder: Path, layers: Sequence[MemoryLayer], *, equal: bool = False) -> None:
        """Write this rank's part; called by every rank, also by one without layers (another pipeline stage).

        With `equal`, all replicas have the same tables, of which one copy is enough.
        """
        description = self._description(equal)
        dcp.save(self._state(layers, description), storage_writer=dcp.FileSystemWriter(folder, thread_count=1))
        self._finish(folder, description)
        barrier()

    def request_to_save(self, folder: Path, layers: Sequence[MemoryLayer], *, equal: bool = False) -> AsyncRequest:
        """Plan the same, for a `BackgroundWriter`; called by every rank."""
        description = self._description(equal)
        request = request_to_save(self._state(layers, description), folder)
        request.add_finalize_fn(lambda: self._finish(folder, description))
        return request

    def _description(self, equal: bool) -> StoreDescription:
        """What a checkpoint contains, and a line in the log if that is not every replica's memory."""
        total = self._ranks.replicas
        saved = (0,) if equal else replicas_to_save(self._memory, total)
        if equal:
            logger.info("one copy of the memories is saved: all %d replicas are equal after --fwpkm-dp-sync", total)
        elif len(saved) < total:
            logger.info(
                "the memories of %d of %d replicas are saved (%s): %s",
                len(saved),
                total,
                _words(saved),
                "a resumed run continues bit for bit only on these"
                if self._memory.reset == "never"
                else f"--fwpkm-reset {self._memory.reset} resumes from the initial memory",
            )
        return StoreDescription(total, self._ranks.tensor_group.size(), self._seed, saved, equal)

    def _state(self, layers: Sequence[MemoryLayer], description: StoreDescription) -> dict[str, Tensor]:
        """This rank's tensors by their keys: tables where they are saved, what else a memory has always."""
        saves_tables = self._ranks.replica in description.saved_replicas
        found = {}
        for layer in layers:
            weights, shapes = layer.fast_weights(), layer.whole_shapes()
            tensors = self._others(weights) | (weights.tables() if saves_tables else {})
            for name, local in tensors.items():
                key = key_of(layer.layer_number, self._ranks.replica, name)
                found[key] = self._as_global(name, local.detach().contiguous(), shapes)
        return found

    @staticmethod
    def _finish(folder: Path, description: StoreDescription) -> None:
        """Say beside the tensors what they are."""
        if rank() == 0:
            description.write(folder)

    def load(self, folder: Path, layers: Sequence[MemoryLayer]) -> str | None:
        """Read this rank's part into `layers`; called by every rank.

        Returns a notice when not every replica continues with its own memory. Raises ValueError for a store without
        one of the layers or with other table sizes.
        """
        stored = stored_tensors(folder)
        saved = read_description(folder)
        targets: list[tuple[MemoryLayer, dict[str, Tensor]]] = []
        request: dict[str, Tensor] = {}
        for layer in layers:
            if not replicas_with_tables(stored, layer.layer_number):
                raise ValueError(f"{folder} contains no memory for layer {layer.layer_number}")
            source = self._source(saved)
            if source is None:
                layer.reset()
                continue
            local = self._allocate(layer, stored, source, self._source_of_the_rest(saved, source))
            shapes = layer.whole_shapes()
            request |= {key: self._as_global(name_of(key), tensor, shapes) for key, tensor in local.items()}
            targets.append((layer, {name_of(key): tensor for key, tensor in local.items()}))
        self._check_shapes(folder, stored, request)
        dcp.load(request, storage_reader=dcp.FileSystemReader(folder))
        for layer, local in targets:
            waiting = {name.removeprefix("pending/"): t for name, t in local.items() if name.startswith("pending/")}
            pending = PendingTokens(**waiting) if waiting else None
            layer.load_fast_weights(layer.fast_weights().with_tables(local, pending, local.get("rounding")))
        return self._notice(saved)

    def _source(self, saved: StoreDescription) -> int | None:
        """The replica whose tables this one takes, None for the initial memory."""
        mine, rule, numbers = self._ranks.replica, self._memory.load_dp_rule, saved.saved_replicas
        if saved.replicas == self._ranks.replicas:
            if mine in numbers:
                return mine
            if saved.replicas_equal:
                return numbers[0]
        if rule == "reset":
            return None
        return numbers[mine % len(numbers)] if rule == "modulo" else numbers[0]

    def _source_of_the_rest(self, saved: StoreDescription, source: int) -> int:
        """The replica whose waiting tokens this one takes: its own while there are as many."""
        return self._ranks.replica if saved.replicas == self._ranks.replicas else source

    def _notice(self, saved: StoreDescription) -> str | None:
        """What the log says where replicas do not continue with their own memories."""
        now, numbers = self._ranks.replicas, saved.saved_replicas
        meaning = _RULES[self._memory.load_dp_rule].format(saved=len(numbers))
        few = len(numbers) < saved.replicas and not saved.replicas_equal
        if saved.replicas != now:
            which = f" (saved: the memories of replicas {_words(numbers)}, in this order)" if few else ""
            return f"the number of replicas changed from {saved.replicas} to {now}{which}: {meaning}"
        if not few or self._memory.reset != "never":
            return None
        return (
            f"only the memories of {len(numbers)} of {now} replicas were saved (replicas {_words(numbers)}, in this "
            f"order), which continue bit for bit; of the others, {meaning}"
        )

    def _others(self, weights: State) -> dict[str, Tensor]:
        """What a state has beside its tables, by its name in the store."""
        tensors = {}
        if weights.rounding is not None:
            # The third number, a rank's first column, belongs to the layout.
            tensors["rounding"] = weights.rounding[:2]
        if weights.pending is not None:
            waiting = {f"pending/{name}": getattr(weights.pending, name) for name in PENDING_FIELDS}
            tensors |= {name: tensor for name, tensor in waiting.items() if tensor is not None}
        return tensors

    def _allocate(
        self, layer: MemoryLayer, stored: dict[str, TensorStorageMetadata], replica: int, of_the_rest: int
    ) -> dict[str, Tensor]:
        """Empty tensors of this rank's shapes by key: a replica's tables, and what else is stored of another one."""
        weights, number = layer.fast_weights(), layer.layer_number
        tables = weights.tables()
        local = {key_of(number, replica, name): torch.empty_like(table) for name, table in tables.items()}
        if weights.rounding is not None and (key := key_of(number, of_the_rest, "rounding")) in stored:
            local[key] = torch.empty_like(weights.rounding[:2])
        device = next(iter(tables.values())).device
        for name in PENDING_FIELDS:
            found = stored.get(key := key_of(number, of_the_rest, f"pending/{name}"))
            if found is not None:
                shape = list(found.size)
                if name == "targets":
                    shape[-1] = layer.target_width
                local[key] = torch.empty(shape, dtype=found.properties.dtype, device=device)
        return local

    def _as_global(self, name: str, local: Tensor, shapes: dict[str, tuple[int, ...]]) -> Tensor:
        """`local` as this rank's part of the whole tensor, which tensor- and context-parallel ranks share."""
        if name == "pending/targets":
            whole: tuple[int, ...] = (*local.shape[:-1], *shapes["target"])
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
                    "check the sizes of the memories (--fwpkm-num-heads, --fwpkm-num-subkeys, --fwpkm-key-dim, "
                    "--fwpkm-value-dim, --fwmlp-hidden-size, --fwmlp-key-dim, --fwmlp-value-dim)"
                )
        assert dist.is_initialized()


def _words(numbers: Sequence[int]) -> str:
    """`0 1 2`; of many numbers the first three and the last."""
    if len(numbers) <= 8:
        return " ".join(map(str, numbers))
    return f"{' '.join(map(str, numbers[:3]))} ... {numbers[-1]}"
