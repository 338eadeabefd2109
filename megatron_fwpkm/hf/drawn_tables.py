"""Fast weights that an export leaves out of its files: they are drawn at loading, as the run drew them.

`fwpkm_drawn_tables` of the configuration says how, and which hash they must have: another release of torch, or another
kind of CPU, may round random numbers differently. With its tables a model is like one whose files have them. Ships
inside exports.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .kind_modules import layer_modules

if TYPE_CHECKING:
    from .configuration_fwpkm import FwPKMHFConfig
    from .modeling_fwpkm import FwPKMModel

def leave_out_drawn_tables(model: FwPKMModel) -> None:
    """Take the tables out of what a model that is to draw them saves, loads and misses."""
    if model.config.fwpkm_drawn_tables is not None:
        for layer in model.config.memory_layers:
            memory: Any = model.layers[layer].memory
            memory._non_persistent_buffers_set.update(memory.table_names)


def with_drawn_tables(loaded: Any) -> Any:
    """Draw the tables of a model that has been loaded without them; from then on they belong to its weights.

    Args:
        loaded: a model, or a model and what Transformers says of loading it.

    Returns:
        The same.

    Raises:
        ValueError: this torch or CPU draws other tables than the machine that made the export; or the layers are not
            in memory.
    """
    whole = loaded[0] if isinstance(loaded, tuple) else loaded
    model, rule = whole.base_model, whole.config.fwpkm_drawn_tables
    if rule is None:
        return loaded
    digest = hashlib.sha256()
    for layer in whole.config.memory_layers:
        memory = model.layers[layer].memory
        for name, table in drawn_tables(whole.config, layer, rule["seed"], rule["table_dtype"]).items():
            _add(digest, name, table)
            device = getattr(memory, name).device
            if device.type == "meta":
                raise ValueError(
                    f"layer {layer} is not in memory, and its tables cannot be drawn there; load the model without a "
                    "device_map that offloads, or export it with --fast-weights initial"
                )
            setattr(memory, name, table.to(device))
        memory._non_persistent_buffers_set.difference_update(memory.table_names)
    if digest.hexdigest() != rule["sha256"]:
        raise ValueError(
            f"torch {torch.__version__} on this CPU draws other initial fast weights than the machine that made this "
            "export, whose files have none (fwpkm_drawn_tables in config.json); load it with that machine's release of "
            "torch and kind of CPU, or export again with --fast-weights initial"
        )
    whole.config.fwpkm_drawn_tables = None
    return loaded


def tables_hash(config: FwPKMHFConfig, seed: int, table_dtype: str) -> str:
    """SHA-256 of the tables of all layers, in hexadecimal; those of one layer at a time are in memory."""
    digest = hashlib.sha256()
    for layer in config.memory_layers:
        for name, table in drawn_tables(config, layer, seed, table_dtype).items():
            _add(digest, name, table)
    return digest.hexdigest()


def drawn_tables(config: FwPKMHFConfig, layer: int, seed: int, table_dtype: str) -> dict[str, Tensor]:
    """The fast weights of a layer (counted from 0) before any write, float32 on the CPU, by the names of its buffers.

    Args:
        config: of the model.
        layer: one of its `memory_layers`.
        seed: of the training run.
        table_dtype: what the run stored its tables in, `fp32` or `bf16`.
    """
    memory, _, _ = layer_modules(config, layer)
    assert memory is not None and memory.tables is not None, f"layer {layer} has no fast weights"
    return {name: table.float() for name, table in memory.tables(config, layer + 1, seed, table_dtype).items()}


def _add(digest: Any, name: str, table: Tensor) -> None:
    digest.update(f"{name} {tuple(table.shape)}".encode())
    digest.update(table.contiguous().numpy().data)
