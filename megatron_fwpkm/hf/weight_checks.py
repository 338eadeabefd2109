"""The check of loaded weights: files are whole, every tensor is there with its shape, every number is finite.

Ships inside exports. Transformers alone would put random numbers where a tensor is missing, and say so in a log.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

AGAIN = "copy the folder again, or export again"
REMEDY = f"the weights are damaged or do not belong to config.json; {AGAIN}"


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    dtype: str


def load_checked(load: Callable[..., Any], source: Any, *args: Any, **options: Any) -> Any:
    """Load a model with Transformers and check what was loaded.

    Args:
        load: Transformers' `from_pretrained` of the model's class.
        source: its first argument: a folder, a name on the Hub, or None.
        args: its other arguments.
        options: its keyword arguments. With `ignore_mismatched_sizes`, tensors of other shapes are initialized
            again, as Transformers says in its log.

    Returns:
        What `load` returns.

    Raises:
        ValueError: a file is damaged or missing; a tensor is missing, has another shape, or belongs to no part of the
            model; or a number is not finite.
    """
    stored: dict[str, Stored] = {}
    if source is not None:
        stored = stored_tensors(Path(source), options)
        _check_generation_config(Path(source))
    with_info = options.pop("output_loading_info", False)
    other_shapes = options.pop("ignore_mismatched_sizes", False)
    try:
        model, info = load(source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except SafetensorError as error:
        raise ValueError(f"{source}: {error}; {AGAIN}") from error
    place = "the state_dict" if source is None else str(source)
    files = {tensor.file for tensor in stored.values()}
    if len(files) == 1:
        place = str(*files)
    origins = {name: str(tensor.file) for name, tensor in stored.items()}
    if not other_shapes and info["mismatched_keys"]:
        name, found, needed = min(info["mismatched_keys"])
        raise ValueError(
            f"{origins.get(name, place)}: {name} has shape {list(found)}, but this configuration needs {list(needed)}; "
            f"{REMEDY}"
        )
    if info["missing_keys"]:
        raise ValueError(f"{place}: {_named(info['missing_keys'])} missing; {REMEDY}")
    if info["unexpected_keys"]:
        raise ValueError(f"{place}: {_named(info['unexpected_keys'])} not part of this model; {REMEDY}")
    for name, tensor in stored.items():
        if not tensor.dtype.startswith(("F", "BF")) and getattr(model, "hf_quantizer", None) is None:
            raise ValueError(
                f"{tensor.file}: {name} has dtype {tensor.dtype}, which is not a floating-point type; {REMEDY}"
            )
    check_finite(model, place, origins)
    return (model, info) if with_info else model


def check_finite(model: nn.Module, place: str, origins: Mapping[str, str] | None = None) -> None:
    """Check that every weight and every table holds numbers.

    A sum is not finite where one of its numbers is not, and takes less time than reading the file did.

    Args:
        model: the model; what is not in memory (on the meta device) is not looked at.
        place: where its weights come from, for the error.
        origins: the file of each tensor.

    Raises:
        ValueError: a tensor holds NaN or infinity.
    """
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() < 2 or not tensor.numel():
            continue
        with torch.no_grad():
            total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)).item()
            wrong = 0 if math.isfinite(total) else int((~tensor.isfinite()).sum())
        if wrong:
            cause = "the weights are damaged or training diverged; use an earlier checkpoint"
            if tensor.dtype == torch.float16:
                cause += ", or another dtype than float16, whose largest number is 65,504"
            raise ValueError(
                f"{(origins or {}).get(name, place)}: {wrong:,} of the {tensor.numel():,} numbers in {name} "
                f"{'is' if wrong == 1 else 'are'} NaN or infinite: {cause}"
            )


def stored_tensors(folder: Path, options: Mapping[str, Any]) -> dict[str, Stored]:
    """Every tensor that Transformers is about to read from a folder.

    Args:
        folder: a local folder; for anything else the answer is empty.
        options: keyword arguments of `from_pretrained`: which files are read depends on them.

    Raises:
        ValueError: a file is damaged or missing.
    """
    folder = folder / options.get("subfolder", "")
    if not folder.is_dir() or options.get("use_safetensors") is False:
        return {}
    whole, index = (
        folder / _variant(name, options.get("variant")) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )
    if whole.is_file():
        return read_header(whole)
    if not index.is_file():
        return {}
    try:
        named: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{index} is damaged: it is not a JSON index of weights; {AGAIN}") from error
    headers: dict[str, dict[str, Stored]] = {}
    for shard in dict.fromkeys(named.values()):
        if not (folder / shard).is_file():
            raise ValueError(f"{folder / shard} is missing, but {index.name} lists it; {AGAIN}")
        headers[shard] = read_header(folder / shard)
    for name, shard in named.items():
        if name not in headers[shard]:
            raise ValueError(f"{folder / shard} does not contain {name}, but {index.name} lists it there; {AGAIN}")
    return {name: stored for tensors in headers.values() for name, stored in tensors.items()}


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: the file is cut short, or is none.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= max(size, 100_000_000):
            raise ValueError(f"{file} has {size:,} bytes and is not a safetensors file; {AGAIN}")
        text = stream.read(length)
    if len(text) < length:
        raise ValueError(
            f"{file} is truncated: it has {size:,} bytes, but its header alone needs {8 + length:,}; {AGAIN}"
        )
    try:
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        found = {name: Stored(file, str(entry["dtype"])) for name, entry in tensors.items()}
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is damaged: its header is not that of a safetensors file; {AGAIN}") from error
    if end != size:
        raise ValueError(f"{file} has {size:,} bytes instead of {end:,}: it is truncated or damaged; {AGAIN}")
    return found


def _check_generation_config(folder: Path) -> None:
    """Raise ValueError for a damaged file, which Transformers would pass over: texts might end elsewhere."""
    file = folder / GENERATION_CONFIG_NAME
    if not file.is_file():
        return
    try:
        sound = isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"{file} is damaged: it does not contain a JSON object; {AGAIN}")


def _variant(name: str, variant: str | None) -> str:
    """`model.fp16.safetensors`: as Transformers names the file of a variant."""
    stem, _, ending = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{ending}"


def _named(keys: Collection[str]) -> str:
    """`a and 3 more tensors are`."""
    first = sorted(keys)[0]
    if len(keys) == 1:
        return f"the tensor {first} is"
    return f"{first} and {len(keys) - 1} more tensor{'s are' if len(keys) > 2 else ' are'}"
