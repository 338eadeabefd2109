"""A cache as named tensors, and as a file: what was learned from a book, kept for later. Ships inside exports.

One safetensors file, `fwpkm_cache.safetensors`, holds per layer and sequence the rows that were touched, their slots,
moved sub-keys and waiting tokens; and of a text that goes on the keys and values of attention. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..ops.row_overlay import RowOverlay
from ..ops.state import PendingTokens
from .kind_modules import new_cache_layers
from .memory import LayerMemory
from .rows import ReadText

if TYPE_CHECKING:
    from .cache import FwPKMCache

FILE_NAME = "fwpkm_cache.safetensors"
FORMAT = "fwpkm-cache-1"
_SAMPLES = 1024
_WAITING = ("queries", "targets", "gates", "mask")


def layer_tensors(layer: Any) -> dict[str, Tensor]:
    """What a token mixer keeps of the text, by name; empty before its first token."""
    tensors = getattr(layer, "tensors", None)
    return {} if tensors is None else tensors()


def cache_tensors(cache: FwPKMCache) -> dict[str, Tensor]:
    """Everything that a cache holds, by name; tensors of its own, not copies."""
    found = {"sequences": torch.tensor([len(memory.owners) for memory in cache.memory.values()] or [1])}
    for index, memory in cache.memory.items():
        for row, owner in enumerate(memory.owners):
            found |= {f"memory.{index}.{row}.{name}": tensor for name, tensor in _tensors_of(owner).items()}
    text = cache.text
    if text.lengths:
        found |= {"text.lengths": torch.tensor(text.lengths), "text.size": torch.tensor([text.places, text.width])}
        if text.fingerprint is not None:
            found["text.fingerprint"] = text.fingerprint
        for index, layer in enumerate(cache.layers):
            if not hasattr(layer, "tensors"):
                raise ValueError(
                    f"layer {index} keeps its text in a {type(layer).__name__}, which cannot be saved; call "
                    "cache.end_text() first (its memory is kept)"
                )
            found |= {f"layers.{index}.{name}": tensor for name, tensor in layer.tensors().items()}
    return found


def _tensors_of(memory: LayerMemory) -> dict[str, Tensor]:
    state, initial = memory.state, memory.initial.tables()
    found = {name: x for name, x in state.tables().items() if x.data_ptr() != initial[name].data_ptr()}
    overlay, pending = getattr(state, "overlay", None), state.pending
    if overlay is not None and len(overlay):
        found["slots"], found["rows"] = overlay.touched()
    if pending is not None:
        found |= {f"pending.{name}": x for name in _WAITING if (x := getattr(pending, name)) is not None}
    return found


def fill_cache(cache: FwPKMCache, tensors: Mapping[str, Tensor]) -> None:
    """Put what `cache_tensors` has given in the place of what a cache holds; see `FwPKMCache.load_state_dict`."""
    left = dict(tensors)
    sequences = left.pop("sequences", torch.tensor([])).tolist()
    if len(sequences) != max(1, len(cache.memory)) or any(not 0 < number < 2**20 for number in sequences):
        raise ValueError(f"'sequences' is {sequences}: not the memories of this model")
    new: dict[int, list[LayerMemory]] = {}
    for (index, memory), number in zip(cache.memory.items(), sequences, strict=False):
        if memory.shared and number != 1:
            raise ValueError(f"the cache is shared, but {number} memories were saved: use memory='per-sequence'")
        prefixes = [f"memory.{index}.{row}." for row in range(number)]
        new[index] = [_filled(memory.owners[0], _taken(left, prefix), prefix) for prefix in prefixes]
    text, layers = _text_of(left), new_cache_layers(cache.model.config)
    for index, layer in enumerate(layers if text.lengths else []):
        _fill_layer(layer, _taken(left, f"layers.{index}."), len(text.lengths), f"layers.{index}.")
    if left:
        raise ValueError(f"{', '.join(sorted(left)[:5])}: no part of a cache of this model")
    cache.reset()
    for index, owners in new.items():
        cache.memory[index].owners = owners
    cache.layers, cache.text = layers, text


def _fill_layer(layer: Any, given: dict[str, Tensor], sequences: int, prefix: str) -> None:
    """Put tensors that were saved into what a token mixer keeps, which is new."""
    for name, x in given.items():
        if x.is_floating_point() and (not x.ndim or len(x) != sequences or not bool(x.isfinite().all())):
            raise ValueError(f"{prefix}{name} is not that of {sequences} sequences, or not finite: {list(x.shape)}")
    try:
        layer.load(given)
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from error


def _taken(left: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, which are removed from those that are left."""
    return {name.removeprefix(prefix): left.pop(name) for name in sorted(left) if name.startswith(prefix)}


def _filled(memory: LayerMemory, given: dict[str, Tensor], prefix: str) -> LayerMemory:
    """A memory like `memory` at its beginning, with the tensors of one that was saved."""
    fresh = memory.clone()
    fresh.reset()
    initial, overlay = fresh.initial, getattr(fresh.initial, "overlay", None)
    tables = initial.tables()
    device, known = next(iter(tables.values())).device, dict(tables)
    if overlay is not None:
        known.pop("values")
        slots, rows = given.pop("slots", None), given.pop("rows", None)
        if slots is not None or rows is not None:
            overlay = RowOverlay(overlay.base, *_checked_rows(overlay.base, slots, rows, prefix))
    for name in [name for name in given if name in known]:
        _check_like(f"{prefix}{name}", given[name], known[name].shape, known[name].dtype)
        tables = {**tables, name: given.pop(name).to(device).clone()}
    waiting = {name: x.to(device).clone() for name in _WAITING if (x := given.pop(f"pending.{name}", None)) is not None}
    pending = None
    if waiting:
        if not {"queries", "targets"} <= waiting.keys():
            raise ValueError(f"{prefix}pending: its queries or targets are missing")
        pending = PendingTokens(**waiting)
        _check_waiting(pending, next(iter(known.values())).dtype, prefix)
    if given:
        raise ValueError(f"{prefix}{min(given)}: no part of a memory of this model")
    state = initial.with_tables(tables, pending)
    fresh.state = state if overlay is None else replace(state, overlay=overlay)
    if not len(overlay or ()) and pending is None and tables == initial.tables():
        fresh.reset()
    return fresh


def _checked_rows(base: Tensor, slots: Tensor | None, rows: Tensor | None, prefix: str) -> tuple[Tensor, Tensor]:
    if slots is None or rows is None:
        raise ValueError(f"{prefix}slots and {prefix}rows belong together, but one is missing")
    if slots.ndim != 1 or slots.dtype != torch.int64:
        raise ValueError(f"{prefix}slots must be int64 [rows], got {slots.dtype} {list(slots.shape)}")
    _check_like(f"{prefix}rows", rows, torch.Size([len(slots), base.shape[1]]), base.dtype)
    ascending = bool((slots[1:] > slots[:-1]).all())
    if len(slots) and not (ascending and 0 <= int(slots[0]) and int(slots[-1]) < len(base)):
        raise ValueError(f"{prefix}slots must ascend from 0 to at most {len(base) - 1}, each at most once")
    return slots.to(base.device).clone(), rows.to(base.device).clone()


def _check_like(name: str, tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}: not of this model"
        )
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} contains numbers that are not finite")


def _check_waiting(pending: PendingTokens, dtype: torch.dtype, prefix: str) -> None:
    size = pending.queries.shape[:2]
    for name, x in vars(pending).items():
        if x is not None and (x.shape[:2] != size or x.ndim < 2 or x.dtype != dtype or not bool(x.isfinite().all())):
            raise ValueError(f"{prefix}pending.{name} is damaged: {x.dtype} {list(x.shape)}, or not finite")


def _text_of(left: dict[str, Tensor]) -> ReadText:
    lengths, size = left.pop("text.lengths", None), left.pop("text.size", None)
    known = left.pop("text.fingerprint", None)
    if lengths is None and size is None and known is None:
        return ReadText()
    if lengths is None or size is None or lengths.ndim != 1 or not len(lengths) or size.shape != (2,):
        raise ValueError("text.lengths and text.size are damaged or missing")
    places, width = size.tolist()
    if lengths.dtype != torch.int64 or not 0 <= int(lengths.min()) <= int(lengths.max()) <= width <= places:
        raise ValueError(f"text.lengths {lengths.tolist()} do not fit text.size {size.tolist()}")
    if known is not None and (known.dtype != torch.int64 or known.shape != lengths.shape):
        raise ValueError("text.fingerprint is damaged")
    return ReadText(places, tuple(lengths.tolist()), width, known)


def save_cache(cache: FwPKMCache, folder: str | os.PathLike[str]) -> None:
    """Write a cache; see `FwPKMCache.save_pretrained`. The file appears whole or not at all."""
    target = Path(folder) / FILE_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.detach().to("cpu").contiguous().clone() for name, x in cache.state_dict().items()}
    partial = target.with_name(f".{FILE_NAME}.partial")
    save_file(tensors, partial, metadata={"format": FORMAT, "owner": cache.owner, "model": model_hash(cache.model)})
    os.replace(partial, target)


def load_cache(folder: str | os.PathLike[str], model: Any) -> FwPKMCache:
    """Read a cache; see `FwPKMCache.from_pretrained`."""
    file = Path(folder) / FILE_NAME
    if not file.is_file():
        raise ValueError(f"{file} does not exist: cache.save_pretrained() writes it")
    try:
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if metadata.get("format") != FORMAT or metadata.get("owner") not in ("per-sequence", "shared"):
        raise ValueError(f"{file} contains no cache of this kind of model (format {metadata.get('format')!r})")
    cache: FwPKMCache = model.new_cache(memory=metadata["owner"])
    if metadata.get("model") != model_hash(cache.model):
        raise ValueError(
            f"{file} was written by another model, or by this one in another dtype or state of training; load the "
            "model that wrote it, or read the documents again"
        )
    try:
        cache.load_state_dict(tensors)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return cache


def model_hash(model: nn.Module) -> str:
    """A hash of names, shapes and up to 1,024 numbers of every weight: what tells one model from another.

    The same numbers give the same hash on any device.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        found.update(f"{name} {list(tensor.shape)}".encode())
        found.update(flat[::step].double().cpu().numpy().tobytes())
    return found.hexdigest()


def move_cache(cache: FwPKMCache, device: torch.device) -> None:
    """Move a cache; see `FwPKMCache.to`."""
    for index, memory in cache.memory.items():
        initial = _fresh_on(memory.owners[0], device)
        memory.owners = [_moved(owner, initial, device) for owner in memory.owners]
        cache.memory[index] = memory
    for layer in cache.layers:
        if tensors := layer_tensors(layer):
            layer.load({name: x.to(device) if x.is_floating_point() else x for name, x in tensors.items()})
    if cache.text.fingerprint is not None:
        cache.text = replace(cache.text, fingerprint=cache.text.fingerprint.to(device))


def _fresh_on(memory: LayerMemory, device: torch.device) -> Any:
    """The memory before any write, on a device: the model's own tables where they are there."""
    fresh = memory.initial if memory.source is None else memory.source()
    tables = {name: table.to(device) for name, table in fresh.tables().items()}
    state = fresh.with_tables(tables, None)
    return state if getattr(fresh, "overlay", None) is None else replace(state, overlay=RowOverlay(state.values))


def _moved(memory: LayerMemory, initial: Any, device: torch.device) -> LayerMemory:
    twin = LayerMemory(initial, memory.options, memory.functions, memory.source)
    if memory.is_fresh:
        return twin
    state, before, after = memory.state, memory.initial.tables(), initial.tables()
    tables = {
        name: after[name] if table.data_ptr() == before[name].data_ptr() else table.to(device)
        for name, table in state.tables().items()
    }
    pending = state.pending
    if pending is not None:
        pending = PendingTokens(*(None if x is None else x.to(device) for x in vars(pending).values()))  # type: ignore[arg-type]
    twin.state = initial.with_tables(tables, pending)
    if (overlay := getattr(state, "overlay", None)) is not None:
        slots, rows = overlay.touched()
        twin.state = replace(twin.state, overlay=RowOverlay(twin.state.values, slots.to(device), rows.to(device)))
    return twin
