"""A Hugging Face folder in the making, whatever the model comes from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import GENERATION_CONFIG_NAME

from ..checkpoint.record import RECORD_NAME, read_record
from ..hf import FwPKMForCausalLM, FwPKMHFConfig
from .bundle import AUTO_MAP, write_bundle
from .weight_files import read_part, stored_form, write_weights
from .weight_mapping import WeightPart


def check_output(target: Path, overwrite: bool, source: Path) -> None:
    """Check that a folder may be written.

    Args:
        target: the folder.
        overwrite: it may be replaced, unless it contains what a run has saved.
        source: what is read.

    Raises:
        ValueError: it exists, and may not be replaced.
    """
    if target.exists() and not overwrite:
        raise ValueError(f"{target} already exists; give another --output, or use --overwrite to replace it")
    whole = source.resolve()
    if target.resolve() in (whole, *whole.parents):
        raise ValueError(f"{target} contains --checkpoint {source}, which would be replaced; give another --output")
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        for record in sorted(target.glob(f"{depth}{RECORD_NAME}")):
            if not read_record(record.parent).weights_only:
                raise ValueError(
                    f"{target} contains {record.parent.name}, a checkpoint of a run, which --overwrite does not "
                    "replace; give another --output"
                )


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
    """A model without numbers, for `filled`; its names and shapes are those of a full one."""
    with torch.device("meta"):
        return FwPKMForCausalLM(config)


def fill_model(model: FwPKMForCausalLM, weights: Mapping[str, Tensor], dtype: str, place: str) -> FwPKMForCausalLM:
    """Put copies of weights, each in its dtype, into an empty model; `filled` with tensors instead of parts."""
    return filled(model, [WeightPart(tuple(weights), lambda: tuple(weights.values()))], dtype, place)


def filled(model: FwPKMForCausalLM, parts: Iterable[WeightPart], dtype: str, place: str) -> FwPKMForCausalLM:
    """Put weights, each in its dtype, into an empty model; returns it in evaluation mode.

    Args:
        model: from `empty_model`.
        parts: every tensor of the model, but for an output projection that is the embedding.
        dtype: of the slow weights; the fast weights are float32.
        place: where the weights come from, for an error.

    Raises:
        ValueError: a weight is not a finite number.
    """
    dtypes = {name: tensor.dtype for name, tensor in stored_form(model, dtype).items()}
    state = {name: tensor for part in parts for name, tensor in read_part(part, dtypes, place).items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    unfilled = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not unfilled, f"weights without a value: {unfilled}"
    _name_special_tokens(model)
    return model.eval()


def write_model(model: FwPKMForCausalLM, folder: Path, kinds: Iterable[str] = ()) -> None:
    """Write a model and its code; `kinds` as in `write_bundle`."""
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    parts = [WeightPart((name,), partial(tuple, [tensor])) for name, tensor in tensors.items()]
    write_weights(model, tensors, parts, folder, str(folder))
    model.config.dtype = model.dtype
    write_description(model, folder, kinds)


def write_description(model: FwPKMForCausalLM, folder: Path, kinds: Iterable[str] = ()) -> None:
    """Write the code, and as the last file config.json, without which nothing takes a folder for a model.

    Args:
        model: with or without numbers.
        folder: where its weights are.
        kinds: as in `write_bundle`.
    """
    write_bundle(folder, kinds)
    _name_special_tokens(model)
    model.generation_config.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # written for their owner alone, unlike the rest
        shutil.copymode(folder / GENERATION_CONFIG_NAME, weights)
    model.config.auto_map = dict(AUTO_MAP)
    model.config.save_pretrained(folder)


def _name_special_tokens(model: FwPKMForCausalLM) -> None:
    config = model.config
    model.generation_config.update(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
