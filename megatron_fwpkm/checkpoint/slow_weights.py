"""Slow weights, optimizer and scheduler through Megatron's dist_checkpointing (torch_dist, fully reshardable)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.optimizer import MegatronOptimizer
from torch import nn
from torch.distributed.checkpoint import FileSystemReader

from ..distributed.megatron_versions import load_checkpoint, own_background_writer
from .background import adapt_megatrons_writers
from .optimizer_resume import own_options_kept, repaired_for_loading, repaired_positions
from .step_count import move_step_count

if TYPE_CHECKING:
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
}
"""Content metadata of every save; the default fails on save and dp_reshardable restores a wrong step."""

_MLP = ".mlp."
"""What stands between a layer and the weights of its MLP in their names."""

_EXTRA_STATE = "_extra_state"
"""What names of a module's state beside its tensors end with."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP and Float16Module."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def _model_state(chunks: Sequence[nn.Module]) -> dict[str, Any]:
    """State of every chunk of this rank. What is stored has names that are global over stages and chunks.

    A weight has one name on disk whatever module holds it (`models.layer_modules`), so that a checkpoint of one
    implementation of the layers is one of the others.
    """
    return {
        f"chunk{number}": unwrap(chunk).sharded_state_dict(metadata=dict(METADATA))  # type: ignore[operator]
        for number, chunk in enumerate(chunks)
    }


def _model_state_in(folder: Path, chunks: Sequence[nn.Module]) -> dict[str, Any]:
    """State to be loaded: all weights, and of what modules keep beside them (FP8 scales) what the checkpoint has."""
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata

    def is_there(name: str, entry: ShardedBase) -> bool:
        """Whether an entry must be, or can be, loaded."""
        return not name.endswith(_EXTRA_STATE) or entry.unique_key in stored

    return {
        chunk: {name: entry for name, entry in state.items() if is_there(name, entry)}
        for chunk, state in _model_state(chunks).items()
    }


def _optimizer_state(optimizer: MegatronOptimizer, model: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
    """State of the optimizer under the names of `model`'s parameters; of placeholders for loading."""
    with repaired_positions(optimizer):
        return optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=dict(METADATA))


def _without_new_mlps(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """State to be loaded, without MLPs of another kind than the checkpoint's, which keep the weights they have."""
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    others = {name.partition(_MLP)[0] for name in stored if _MLP in name}
    held = {
        entry.key.partition(_MLP)[0]
        for part in state.values()
        for entry in part.values()
        if _MLP in entry.key and entry.key in stored
    }

    def is_new(entry: ShardedBase) -> bool:
        """Whether the checkpoint has an MLP in this layer, and nothing of this one."""
        layer, found, _ = entry.key.partition(_MLP)
        return bool(found) and layer in others - held

    return {
        chunk: {name: entry for name, entry in part.items() if not is_new(entry)} for chunk, part in state.items()
    }


def _take_over(
    chunks: Sequence[nn.Module], loaded: dict[str, Any], left_out: dict[str, set[str]] | None = None
) -> None:
    for number, chunk in enumerate(chunks):
        name_of_chunk = f"chunk{number}"
        missing, surplus = unwrap(chunk).load_state_dict(loaded["model"][name_of_chunk], strict=False)
        not_asked_for = (left_out or {}).get(name_of_chunk, ())
        missing = [name for name in missing if not name.endswith(_EXTRA_STATE) and name not in not_asked_for]
        assert not missing and not surplus, f"names of weights do not agree: {missing}, {surplus}"


def save_slow_weights(
    folder: Path, chunks: Sequence[nn.Module], optimizer: MegatronOptimizer, scheduler: OptimizerParamScheduler
) -> None:
    """Write weights, optimizer state and scheduler into `folder`, which exists; called by every rank."""
    _save(folder, chunks, optimizer, scheduler, later=False)


def save_weights(folder: Path, chunks: Sequence[nn.Module]) -> None:
    """Write the weights alone into `folder`, which exists; called by every rank."""
    adapt_megatrons_writers()
    dist_checkpointing.save(
        {"model": _model_state(chunks)},
        str(folder),
        sharded_strategy=("torch_dist", 1),
        content_metadata=dict(METADATA),
    )


def write_description(folder: Path) -> None:
    """Make a folder with nothing but a model's tensors one that `load_slow_weights` reads weights from."""
    torch.save({"content_metadata": dict(METADATA)}, folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


def request_to_save_slow_weights(
    folder: Path, chunks: Sequence[nn.Module], optimizer: MegatronOptimizer, scheduler: OptimizerParamScheduler
) -> AsyncRequest:
    """Plan the same; the request writes it, in a forked process if wanted."""
    request = _save(folder, chunks, optimizer, scheduler, later=True)
    assert request is not None
    return request


def _save(
    folder: Path,
    chunks: Sequence[nn.Module],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    *,
    later: bool,
) -> AsyncRequest | None:
    state: dict[str, Any] = {"model": _model_state(chunks)}
    state["optimizer"] = _optimizer_state(optimizer, state["model"], is_loading=False)
    state["scheduler"] = scheduler.state_dict()
    adapt_megatrons_writers()
    return dist_checkpointing.save(
        state,
        str(folder),
        sharded_strategy=("torch_dist", 1),
        async_sharded_save=later,
        content_metadata=dict(METADATA),
        **own_background_writer(),
    )


def load_slow_weights(
    folder: Path,
    chunks: Sequence[nn.Module],
    optimizer: MegatronOptimizer | None = None,
    scheduler: OptimizerParamScheduler | None = None,
) -> list[str]:
    """Read what `save_slow_weights` wrote, at any tensor-, pipeline- and data-parallel size; called by every rank.

    The optimizer's options (betas, epsilon, learning rates, weight decay) stay those of this run; the schedule's too,
    unless the scheduler was built to take the checkpoint's. Returns notices for the log.

    Without `optimizer` and `scheduler` only the weights are read, but for MLPs of another kind than this model's, and
    the optimizer's float32 copies must be refreshed by the caller (`optimizer.reload_model_params()`).
    """
    if optimizer is None:
        state = _model_state_in(folder, chunks)
        wanted = _without_new_mlps(folder, state)
        left_out = {chunk: part.keys() - wanted[chunk].keys() for chunk, part in state.items()}
        _take_over(chunks, load_checkpoint({"model": wanted}, folder), left_out)
        return []
    assert scheduler is not None, "optimizer and scheduler are loaded together"
    with repaired_for_loading(optimizer):
        state = {"model": _model_state_in(folder, chunks)}
        state["optimizer"] = _optimizer_state(optimizer, state["model"], is_loading=True)
        loaded = load_checkpoint(state, folder)
        _take_over(chunks, loaded)
        move_step_count(loaded["optimizer"], optimizer)
        with own_options_kept(optimizer):
            optimizer.load_state_dict(loaded["optimizer"])
    return restore_schedule(scheduler, loaded["scheduler"])


def restore_schedule(scheduler: OptimizerParamScheduler, saved: dict[str, Any]) -> list[str]:
    """Let `scheduler` go on from a saved state of one; returns notices for the log."""
    scheduler.num_steps = 0  # loading adds to it
    scheduler.load_state_dict(saved)
    scheduler.step(0)  # loading sets learning rates and weight decay before it has all that they depend on
    return _changed_growth(saved, scheduler)


def _changed_growth(saved: dict[str, Any], scheduler: OptimizerParamScheduler) -> list[str]:
    """A notice if the iteration until which weight decay increases has changed: no option of its own says so."""
    before, now = saved["wd_incr_steps"], scheduler.wd_incr_steps
    if scheduler.wd_incr_style == "constant" or before == now:
        return []
    return [f"changed: weight decay increases until iteration {now} (--train-iters) instead of {before}"]
