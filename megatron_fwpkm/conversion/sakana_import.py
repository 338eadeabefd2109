"""From a checkpoint that the paper's authors released to one of our Hugging Face folders."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ..hf import FwPKMForCausalLM
from .convert_options import ImportOptions
from .export_reading import read_export_tokenizer
from .hf_folder import check_output, empty_model, fill_model, published, write_model
from .imported_card import imported_card
from .library_messages import quiet_libraries
from .sakana_config import our_config
from .sakana_reading import read_config, read_tensors
from .sakana_weights import our_weights

logger = logging.getLogger("megatron_fwpkm")

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def import_sakana(options: ImportOptions) -> Path:
    """Write a released checkpoint as a Hugging Face folder; it appears whole or not at all.

    Args:
        options: of the command.

    Returns:
        The folder.

    Raises:
        ValueError: the checkpoint is not one of theirs, is damaged, or has something that our model has not; or the
            output exists.
    """
    source, target = Path(options.checkpoint), Path(options.output)
    check_output(target, options.overwrite, source)
    with quiet_libraries():
        model = sakana_model(source, options)
        with published(target) as folder:
            write_model(model, folder)
            _copy_tokenizer(source, folder, model.config.vocab_size)
            (folder / "README.md").write_text(imported_card(model), encoding="utf-8")
    return target


def sakana_model(source: Path, options: ImportOptions) -> FwPKMForCausalLM:
    """Our model with the weights of a released checkpoint, in evaluation mode; raises as `import_sakana`."""
    given = read_config(source)
    try:
        config = our_config(given, lookahead=options.lookahead, write_scale=options.write_scale or "official")
        model = empty_model(config)
    except ValueError as error:
        raise ValueError(f"{source / 'config.json'}: {error}") from error
    tensors = read_tensors(source)
    try:
        weights = our_weights(tensors, {name: tensor.shape for name, tensor in model.state_dict().items()}, config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return fill_model(model, weights, options.dtype or "float32", str(source))


def _copy_tokenizer(source: Path, folder: Path, vocab_size: int) -> None:
    """Copy the files of a tokenizer, or say that there is none."""
    files = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    for file in files:
        shutil.copyfile(file, folder / file.name)
    if (folder / "tokenizer.json").is_file():
        read_export_tokenizer(folder, vocab_size)
    else:
        logger.warning(
            "%s contains no tokenizer.json: put that of the model into the output, or the tools that read text cannot "
            "use it", source,
        )  # fmt: skip
