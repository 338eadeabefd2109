"""Weights in safetensors files as Transformers names them, of which no more than one file is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..hf import FwPKMForCausalLM
from ..hf.weight_checks import check_finite
from .weight_mapping import WeightPart

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What the weights of a folder may be stored in; the memory's tables stay float32."""
SHARD_SIZE = "5GB"
"""Of files of weights, where nothing else is asked for."""


def stored_form(model: FwPKMForCausalLM, dtype: str) -> dict[str, Tensor]:
    """Tensors without numbers that have the names, shapes and dtypes of a model's weights in a file.

    Args:
        model: with or without numbers.
        dtype: of the slow weights; the fast weights are float32.

    Raises:
        ValueError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of: {', '.join(DTYPES)}")
    fast = {name for name, _ in model.named_buffers()}
    tensors = {
        name: torch.empty(tensor.shape, dtype=torch.float32 if name in fast else DTYPES[dtype], device="meta")
        for name, tensor in model.state_dict().items()
    }
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def divided(tensors: Mapping[str, Tensor], max_shard_size: str) -> StateDictSplit:
    """Which file each tensor goes into.

    Raises:
        ValueError: `max_shard_size` is not a size.
    """
    try:
        return split_torch_state_dict_into_shards(dict(tensors), max_shard_size=max_shard_size)
    except ValueError as error:
        raise ValueError(f"--max-shard-size {max_shard_size} is not a size such as 500MB or 5GB") from error


def read_part(part: WeightPart, dtypes: Mapping[str, torch.dtype], place: str) -> dict[str, Tensor]:
    """Copies of the tensors of a part that have a dtype in `dtypes`; `place` is where they are from, for an error.

    Raises:
        ValueError: a tensor does not have the shape of its rule, or contains NaN or infinity.
    """
    tensors, found = list(part.read()), {}
    for name in part.names:
        tensor = tensors.pop(0)
        if name in dtypes:
            found[name] = tensor.to(dtypes[name], copy=True, memory_format=torch.contiguous_format)
        del tensor  # before the next one is copied
    holder = nn.Module()
    holder._buffers.update(found)  # `register_buffer` takes no names with dots
    check_finite(holder, place)
    return found


def write_weights(
    model: FwPKMForCausalLM,
    tensors: Mapping[str, Tensor],
    parts: Iterable[WeightPart],
    folder: Path,
    place: str,
    max_shard_size: str = SHARD_SIZE,
) -> None:
    """Write one file, or several and their index; at any time the tensors of one file and one part are in memory.

    A part whose tensors go into two files is read for each of them. A bar shows progress on a terminal.

    Args:
        model: whose weights they are, with or without numbers.
        tensors: the tensors of the files, with or without numbers: names, shapes, dtypes.
        parts: where their numbers are from.
        folder: where to write.
        place: what `parts` read from, for an error.
        max_shard_size: largest size of a file, as "5GB". A larger tensor has a file of its own.

    Raises:
        ValueError: as `read_part` and `divided`.
    """
    split = divided(tensors, max_shard_size)
    part_of = {name: part for part in parts for name in part.names}
    total = split.metadata["total_size"]
    with tqdm(total=total, unit="B", unit_scale=True, desc="export", leave=False, disable=None) as bar:
        for file, names in split.filename_to_tensors.items():
            shard: dict[str, Tensor] = {}
            dtypes = {name: tensors[name].dtype for name in names}
            for name in names:
                if name not in shard:
                    shard.update(read_part(part_of[name], dtypes, place))
                bar.update(shard[name].nbytes)
            save_file(shard, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text + "\n", encoding="utf-8")
