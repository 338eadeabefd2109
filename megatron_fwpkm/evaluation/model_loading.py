"""A model to evaluate and the tokenizer it was trained with: an export, a checkpoint, or any causal language model of
Transformers from a folder of this machine.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..checkpoint.manager import resolve_checkpoint
from ..checkpoint.record import read_record
from ..checkpoint.saved_config import read_saved_config
from ..config import DataConfig
from ..config.memories import memory_numbers
from ..conversion.export import hf_model_from_checkpoint, usable_device
from ..conversion.export_reading import read_export_config
from ..data.tokenizers import Tokenizer, build_tokenizer
from ..distributed.launch_variables import read_launch
from ..processes.freed_memory import keep_freed_memory
from .transformers_models import holds_other_model, learned_positions, load_other_model, read_other_config


@dataclass(frozen=True)
class ModelFacts:
    """What is known about a model without its weights."""

    tokenizer: Tokenizer
    bos: int | None
    """As `LoadedModel.bos`."""
    has_memory: bool
    """Whether it has fast-weight memory layers."""
    positions: int | None
    """Maximum number of tokens if position embeddings are learned; None if there is no such limit."""


@dataclass(frozen=True)
class LoadedModel:
    """What an evaluation needs of a model."""

    model: PreTrainedModel
    """In evaluation mode and float32, on its device."""
    tokenizer: Tokenizer
    bos: int | None = None
    """The token that every text begins with; None where documents of training began with none."""

    def identity(self) -> dict[str, object]:
        """What distinguishes this model from others in a log of records, wherever its folder is."""
        begins: dict[str, object] = {} if self.bos is None else {"bos": self.bos}
        if (factor := getattr(self.model.config, "yarn_factor", None)) is not None:  # which changes no weight
            begins["yarn_factor"] = factor
        return {"weights": self.weights_digest(), "tokenizer": self.tokenizer.identity, **begins}

    def config_values(self) -> dict[str, Any]:
        """The fields of its configuration that are set, as plain values."""
        return {name: value for name, value in self.model.config.to_dict().items() if value is not None}

    def weights_digest(self) -> str:
        """Hex digest of all weights and initial tables: tells whether two folders hold the same model."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def inspect_model(path: str, device: str = "auto") -> ModelFacts:
    """What a model folder holds, after everything that can be checked without loading weights.

    Raises:
        ValueError: as `load_model`.
    """
    usable_device(device)
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"--model {path} is not a folder; give an export, a checkpoint or a Hugging Face model")
    tokenizer = load_tokenizer(folder)
    positions = None
    if holds_other_model(folder):
        config = read_other_config(folder)
        has_memory, vocab_size, positions = False, config.get_text_config().vocab_size, learned_positions(config)
    elif (folder / "config.json").is_file():
        ours = read_export_config(folder)
        has_memory, vocab_size = bool(ours.memory_layers), ours.vocab_size
    else:
        checkpoint = resolve_checkpoint(folder)
        has_memory = bool(memory_numbers(read_saved_config(checkpoint)))
        vocab_size = read_record(checkpoint).vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"--model {path} has {vocab_size} token embeddings, but {tokenizer.path} has a vocabulary of "
            f"{tokenizer.vocab_size}: it is not the tokenizer the model was trained with"
        )
    return ModelFacts(tokenizer, first_token(path, tokenizer), has_memory, positions)


def load_model(path: str, device: str = "auto") -> LoadedModel:
    """Load an export, a checkpoint or a Hugging Face model for evaluation, in float32.

    On a CPU the process keeps freed memory from here on (`keep_freed_memory`).

    Raises:
        ValueError: no such device or folder, no tokenizer in it, a vocabulary larger than the model's embedding, or
            damaged files.
    """
    facts = inspect_model(path, device)
    folder, target = Path(path), _device_of_rank(usable_device(device))
    if target.type == "cpu":
        keep_freed_memory()
    other = holds_other_model(folder)
    model = load_other_model(folder) if other else hf_model_from_checkpoint(folder, tokenizer=False)[0]
    return LoadedModel(model.to(target).eval(), facts.tokenizer, facts.bos)


def _device_of_rank(device: torch.device) -> torch.device:
    """The GPU that torchrun meant for this process, unless the device has a number."""
    launch = read_launch(os.environ)
    if device.type != "cuda" or device.index is not None or launch is None:
        return device
    return torch.device("cuda", launch.local_rank)


def first_token(path: str, tokenizer: Tokenizer) -> int | None:
    """BOS, where the documents that a model was trained on began with it: as its export's tokenizer or its checkpoint
    tells.

    Raises:
        ValueError: a tokenizer.json that is damaged.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        marked = read_record(resolve_checkpoint(folder)).documents.get("prepend_bos")
        return tokenizer.bos if marked is True else None
    file = folder / "tokenizer.json"
    if tokenizer.bos is None or not file.is_file():
        return None
    import tokenizers

    try:
        first = tokenizers.Tokenizer.from_file(str(file)).encode("a").ids[0]
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"{file} is not a Hugging Face tokenizer: {error}") from error
    return tokenizer.bos if first == tokenizer.bos else None


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in an export or a Hugging Face model, or the copy in a checkpoint or in a run's latest checkpoint.

    Raises:
        ValueError: there is none, or the folder is no checkpoint.
    """
    if (folder / "config.json").is_file():
        names = ["tokenizer.model", "tokenizer.json"]  # exports have both; elsewhere the .json decides the ids
        files = [folder / name for name in (reversed(names) if holds_other_model(folder) else names)]
        file = next((file for file in files if file.is_file()), None)
    else:
        try:
            checkpoint = resolve_checkpoint(folder)
            name = read_record(checkpoint).tokenizer_file
        except ValueError as error:
            raise ValueError(
                f"--model {folder}: {error}; give an export, a checkpoint or a Hugging Face model"
            ) from error
        data = read_saved_config(checkpoint).data
        if name or data.tokenizer_type == "ByteLevelTokenizer":
            return build_tokenizer(replace(data, tokenizer_model=str(checkpoint / name) if name else None))
        file = None
    if file is None:
        raise ValueError(f"--model {folder} contains no tokenizer (tokenizer.model or tokenizer.json)")
    if file.suffix == ".model":
        return build_tokenizer(DataConfig(tokenizer_type="SentencePieceTokenizer", tokenizer_model=str(file)))
    return build_tokenizer(DataConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(file)))
