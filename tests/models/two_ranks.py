"""What two ranks compute of models, in one start of the processes: starting them takes most of the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.layers.megatron import VOCABULARY, initialize, tiny
from tests.models.layouts import train_all

_BOTH: dict[str, dict[str, Any]] = {
    "carried": {},
    "static memories": {"pkm": {"layer_numbers": (1, 3)}},
    "document": {"reset": "document"},
    "a memory per sequence": {
        "layer_numbers": (2,),
        "reset": "step",
        "owner": "sequence",
        "fwmlp": {"layer_numbers": (1, 3), "reset": "step", "owner": "sequence"},
    },
}

TENSOR: dict[str, dict[str, Any]] = {
    **_BOTH,
    "fast MLPs": {"layer_numbers": (2,), "fwmlp": {"layer_numbers": (1, 3), "gate_writes": True, "inner_lr": 0.5}},
    "several heads, no gate": {
        "gate": False,
        "num_heads": 2,
        "boundary": "carry",
        "model": {"attention_output_gate": True},
    },
}
QUICK_TENSOR = [("carried", False), ("a memory per sequence", True), ("several heads, no gate", True)]
"""Of these models with and without sequence parallelism, what every run of the tests compares with one process."""

CONTEXT: dict[str, dict[str, Any]] = {
    **_BOTH,
    "documents apart": {"reset": "document", "data": {"reset_attention_mask": True, "reset_position_ids": True}},
    "several heads, no gate, long window": {
        "gate": False,
        "num_heads": 2,
        "boundary": "carry",
        "model": {"layer_pattern": "swa:30,fa,swa:14", "attention_output_gate": True},
    },
    "sequence parallel": {"sequence_parallel": True},
    "fast MLPs": {
        "layer_numbers": (),
        "fwmlp": {"layer_numbers": (1, 3), "gate_writes": True, "reset": "document", "boundary": "carry"},
    },
    "gated delta nets": {"model": {"layer_pattern": "gdn*2,fa", "window_size": None}, "layer_numbers": (2,)},
    "recomputed": {"training": {"recompute_granularity": "selective"}},
}
QUICK_CONTEXT = ["carried", "gated delta nets", "documents apart", "several heads, no gate, long window"]
"""What a rank must know of the tokens of others: the memory's, the states', the documents' and the windows'."""

STAGED: dict[str, Any] = {
    "model": {"num_layers": 4, "layer_pattern": "fa", "untie_embeddings_and_output_weights": True}
}


def store_metadata() -> dict[str, Any]:
    from megatron.core import parallel_state

    return {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


@dataclass(frozen=True)
class Computed:
    """By case what the ranks computed; a checkpoint of two tensor-parallel ranks; weights of two pipeline stages."""

    tensor: dict[tuple[str, bool], list[dict[str, Any]]]
    context: dict[str, list[dict[str, Any]]]
    folder: str
    stages: list[dict[str, torch.Tensor]]


TwoRanks = Callable[[], Computed]


def tensor_case(name: str, sequence_parallel: bool) -> tuple[dict[str, Any], int, int]:
    """Options, steps and context-parallel size of a case of `TENSOR`."""
    return {**TENSOR[name], "sequence_parallel": sequence_parallel}, 2, 1


def save_and_restage(rank: int, world_size: int, folder: str) -> dict[str, torch.Tensor]:
    """Save a model over two tensor-parallel ranks; then return what a pipeline of two stages starts with."""
    from megatron.core import dist_checkpointing, parallel_state

    parallel_state.destroy_model_parallel()
    initialize(tensor_parallel=world_size)

    from megatron_fwpkm.models.builder import build_model

    model = build_model(tiny(**STAGED), VOCABULARY)
    dist_checkpointing.save(model.sharded_state_dict(metadata=store_metadata()), folder)

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(1, pipeline_model_parallel_size=world_size)
    stage = build_model(tiny(**STAGED), VOCABULARY, pre_process=rank == 0, post_process=rank == world_size - 1)
    renamed = {}
    for name, parameter in stage.named_parameters():
        parts = name.split(".")
        if parts[:2] == ["decoder", "layers"]:
            parts[2] = str(int(parts[2]) + 2 * rank)
        renamed[".".join(parts)] = parameter.detach()
    for index, layer in enumerate(stage.decoder.layers):
        if hasattr(layer.memory, "values"):
            renamed[f"values {index + 2 * rank}"] = layer.memory.values
    return renamed


def compute_on_rank(rank: int, world_size: int, folder: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """All quick cases, one after the other, and what `save_and_restage` returns."""
    cases = [*(tensor_case(*case) for case in QUICK_TENSOR), *((CONTEXT[name], 2, 2) for name in QUICK_CONTEXT)]
    return train_all(rank, world_size, cases), save_and_restage(rank, world_size, folder)
