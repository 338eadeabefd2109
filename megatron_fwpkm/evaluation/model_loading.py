"""A model to evaluate and the tokenizer it was trained with, from an export or a checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..checkpoint.manager import resolve_checkpoint
from ..checkpoint.record import read_record
from ..checkpoint.saved_config import read_saved_config
from ..config import DataConfig
from ..conversion.export import hf_model_from_checkpoint, usable_device
from ..conversion.export_reading import read_export_config
from ..data.tokenizers import Tokenizer, build_tokenizer
from ..hf.modeling_fwpkm import FwPKMForCausalLM


@dataclass(frozen=True)
class LoadedModel:
    """What an evaluation needs of a model."""

    model: FwPKMForCausalLM
    tokenizer: Tokenizer
    bos: int | None = None
    """The token that every text begins with; None where documents of training began with none."""

    def weights_digest(self) -> str:
        """Hex digest of all weights and initial tables: tells whether two folders hold the same model."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def tokenizer_of_model(path: str, device: str = "auto") -> Tokenizer:
    """The tokenizer of an export or a checkpoint, after everything that can be checked without loading weights.

    Raises:
        ValueError: as `load_model`.
    """
    usable_device(device)
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"--model {path} is not a folder; give an export or a checkpoint")
    tokenizer = load_tokenizer(folder)
    if (folder / "config.json").is_file():
        config = read_export_config(folder)
        check_fits(bool(config.fwpkm_layers), config.vocab_size, tokenizer, path)
    else:
        checkpoint = resolve_checkpoint(folder)
        layers = read_saved_config(checkpoint).fwpkm.layer_numbers
        check_fits(bool(layers), read_record(checkpoint).vocab_size, tokenizer, path)
    return tokenizer


def load_model(path: str, device: str = "auto") -> LoadedModel:
    """Load an export or a checkpoint for evaluation, in float32.

    Raises:
        ValueError: no such device or folder, no tokenizer in it, a model without memory layers, or a tokenizer with
            more pieces than the model has embeddings.
    """
    tokenizer = tokenizer_of_model(path, device)
    model, _ = hf_model_from_checkpoint(Path(path), tokenizer=False)
    return LoadedModel(model.to(usable_device(device)).eval(), tokenizer, first_token(path, tokenizer))


def check_fits(has_memory: bool, vocab_size: int, tokenizer: Tokenizer, path: str) -> None:
    """Raise ValueError for a model that has no memory, or not the tokenizer's vocabulary."""
    if not has_memory:
        raise ValueError(
            f"--model {path} has no fast-weight memory (it was trained without --fwpkm-layer-numbers): nothing to "
            "measure"
        )
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"--model {path} has {vocab_size} token embeddings, but {tokenizer.path} has {tokenizer.vocab_size} "
            "pieces: it is not the tokenizer the model was trained with"
        )


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
    """The tokenizer in an export, or the copy in a checkpoint or in the latest checkpoint of a run.

    Raises:
        ValueError: there is none, or the folder is no checkpoint.
    """
    if (folder / "config.json").is_file():
        files = [folder / name for name in ("tokenizer.model", "tokenizer.json")]
        file = next((file for file in files if file.is_file()), None)
    else:
        checkpoint = resolve_checkpoint(folder)
        name = read_record(checkpoint).tokenizer_file
        data = read_saved_config(checkpoint).data
        if name or data.tokenizer_type == "ByteLevelTokenizer":
            return build_tokenizer(replace(data, tokenizer_model=str(checkpoint / name) if name else None))
        file = None
    if file is None:
        raise ValueError(f"--model {folder} holds no tokenizer (tokenizer.model or tokenizer.json)")
    if file.suffix == ".model":
        return build_tokenizer(DataConfig(tokenizer_type="SentencePieceTokenizer", tokenizer_model=str(file)))
    return build_tokenizer(DataConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(file)))
