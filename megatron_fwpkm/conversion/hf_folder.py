"""A Hugging Face folder in the making, whatever the model comes from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..hf import FwPKMForCausalLM, FwPKMHFConfig
from ..hf.weight_checks import check_finite
from .bundle import AUTO_MAP, write_bundle

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What the weights of a folder may be stored in; the memory's tables stay float32."""


def check_output(target: Path, overwrite: bool) -> None:
    """Check that a folder may be written.

    Raises:
        ValueError: it exists, and may not be replaced.
    """
    if target.exists() and not overwrite:
        raise ValueError(f"{target} already exists; give another --output, or use --overwrite to replace it")


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """A folder to fill; it takes its name when the body has ended well, and vanishes otherwise."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            previous = target.with_name(f".{target.name}.previous")
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(target, previous)
            os.replace(partial, target)
            shutil.rmtree(previous)
        else:
            os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def empty_model(config: FwPKMHFConfig) -> FwPKMForCausalLM:
    """A model without numbers, for `fill_model`; its names and shapes are those of a full one."""
    with torch.device("meta"):
        return FwPKMForCausalLM(config)


def fill_model(model: FwPKMForCausalLM, weights: Mapping[str, Tensor], dtype: str, place: str) -> FwPKMForCausalLM:
    """Put copies of weights, each in its dtype, into an empty model; returns it in evaluation mode.

    Args:
        model: from `empty_model`.
        weights: every tensor of the model by name, but for an output projection that is the embedding.
        dtype: of the slow weights; the fast weights are float32.
        place: where the weights come from, for an error.

    Raises:
        ValueError: a weight is not a finite number.
    """
    fast = {name for name, _ in model.named_buffers()}
    dtypes = {name: torch.float32 if name in fast else DTYPES[dtype] for name in weights}
    state = {name: tensor.to(dtypes[name], copy=True) for name, tensor in weights.items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    unfilled = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not unfilled, f"weights without a value: {unfilled}"
    check_finite(model, place)
    config = model.config
    model.generation_config.update(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model.eval()


def write_model(model: FwPKMForCausalLM, folder: Path, kinds: Iterable[str] = ()) -> None:
    """Write a model and its code; `kinds` as in `write_bundle`."""
    model.config.auto_map = dict(AUTO_MAP)
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # written for their owner alone, unlike the rest
        shutil.copymode(folder / "config.json", weights)
    write_bundle(folder, kinds)
