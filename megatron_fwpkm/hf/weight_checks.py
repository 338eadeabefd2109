"""The check of loaded weights: files are whole, every tensor is there with its shape, every number is finite.

Ships inside exports. Transformers alone would put random numbers where a tensor is missing, and say so in a log. What a
folder's files say is compared with its configuration before anything is allocated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig

from .json_files import AGAIN, check_json_files
from .stored_weights import Stored, check_weight_files, stored_tensors

REMEDY = f"the weights are damaged or do not belong to config.json; {AGAIN}"


def load_checked(load: Callable[..., Any], source: Any, *args: Any, **options: Any) -> Any:
    """Load a model with Transformers and check what is loaded: of a folder, before anything is allocated.

    Args:
        load: Transformers' `from_pretrained` of the model's class, bound to it.
        source: its first argument: a folder, a name on the Hub, or None.
        args: its other arguments.
        options: its keyword arguments. With `ignore_mismatched_sizes`, tensors of other shapes are initialized
            again, as Transformers says in its log.

    Returns:
        What `load` returns.

    Raises:
        ValueError: a file is damaged, missing or a torch file; a tensor is missing, has another shape, or belongs to
            no part of the model; or a number is not finite.
    """
    stored: dict[str, Stored] = {}
    with_info = options.pop("output_loading_info", False)
    other_shapes = options.pop("ignore_mismatched_sizes", False)
    if source is not None:
        check_weight_files(Path(source), options)
        check_json_files(Path(source) / options.get("subfolder", ""))
        stored = stored_tensors(Path(source), options)
        options["use_safetensors"] = True
    place = "the state_dict" if source is None else str(source)
    files = {tensor.file for tensor in stored.values()}
    if len(files) == 1:
        place = str(*files)
    origins = {name: str(tensor.file) for name, tensor in stored.items()}
    if stored:
        _check_declared(load.__self__, source, options, stored, place, other_shapes)  # type: ignore[attr-defined]
    try:
        model, info = load(source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except SafetensorError as error:
        raise ValueError(f"{source}: {error}; {AGAIN}") from error
    if not other_shapes and info["mismatched_keys"]:
        name, found, needed = min(info["mismatched_keys"])
        raise ValueError(_other_shape(origins.get(name, place), name, found, needed))
    if info["missing_keys"]:
        raise ValueError(f"{place}: {_named(info['missing_keys'])} missing; {REMEDY}")
    if info["unexpected_keys"]:
        raise ValueError(f"{place}: {_named(info['unexpected_keys'])} not part of this model; {REMEDY}")
    check_finite(model, place, origins)
    return (model, info) if with_info else model


def _check_declared(
    model_class: Any,
    source: Any,
    options: Mapping[str, Any],
    stored: Mapping[str, Stored],
    place: str,
    other_shapes: bool,
) -> None:
    """Compare what the files hold with what the configuration asks for, which costs no memory.

    Raises:
        ValueError: a tensor is missing, has another shape or no floating-point numbers.
    """
    config = _configuration(model_class, source, options)
    if (options.get("quantization_config") or getattr(config, "quantization_config", None)) is not None:
        return
    for name, tensor in stored.items():
        if not tensor.dtype.startswith(("F", "BF")):
            raise ValueError(
                f"{tensor.file}: {name} has dtype {tensor.dtype}, which is not a floating-point type; {REMEDY}"
            )
    layers = {int(found[1]) for name in stored if (found := re.search(r"\blayers\.(\d{1,9})\.", name))}
    if config.num_hidden_layers > len(layers):
        raise ValueError(
            f"{place}: it holds {len(layers)} layers, but this configuration needs {config.num_hidden_layers} "
            f"(num_hidden_layers); {REMEDY}"
        )
    with torch.device("meta"):
        model = model_class(config)
    prefix = f"{model_class.base_model_prefix}."
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = set(needed) - set(model.all_tied_weights_keys)
    for name, tensor in stored.items():
        own = next((one for one in (name, prefix + name, name.removeprefix(prefix)) if one in needed), None)
        if own is None:
            continue
        missing.discard(own)
        if tensor.shape != needed[own] and not other_shapes:
            raise ValueError(_other_shape(str(tensor.file), name, tensor.shape, needed[own]))
    if missing:
        raise ValueError(f"{place}: {_named(missing)} missing; {REMEDY}")


def _configuration(model_class: Any, source: Any, options: Mapping[str, Any]) -> Any:
    """The configuration that Transformers is about to use."""
    given = options.get("config")
    if isinstance(given, PreTrainedConfig):
        return given
    others = {name: value for name, value in options.items() if name != "config"}
    return model_class.config_class.from_pretrained(given or source, return_unused_kwargs=True, **others)[0]


def _other_shape(place: str, name: str, found: Collection[int], needed: Collection[int]) -> str:
    return f"{place}: {name} has shape {list(found)}, but this configuration needs {list(needed)}; {REMEDY}"


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


def _named(keys: Collection[str]) -> str:
    """`a and 3 more tensors are`."""
    first = sorted(keys)[0]
    if len(keys) == 1:
        return f"the tensor {first} is"
    return f"{first} and {len(keys) - 1} more tensor{'s are' if len(keys) > 2 else ' are'}"
