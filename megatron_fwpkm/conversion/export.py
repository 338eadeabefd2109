"""From a Megatron checkpoint to a Hugging Face model, in memory or as a folder that needs nothing of this package.

megatron.core is imported only where a checkpoint is read: an export is used on machines without it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config.layer_kinds import kinds_in_use
from ..hf import FwPKMForCausalLM
from ..libraries.probes import installed
from ..processes.freed_memory import keep_freed_memory
from .convert_options import FastWeights, StartingMemory
from .export_reading import read_export_config, read_export_tokenizer
from .exported_config import default_memory, hf_config, without_tables
from .exported_weights import exported_weights
from .hf_folder import check_output, empty_model, filled, published, write_description
from .library_messages import quiet_libraries
from .model_card import model_card
from .special_tokens import begins_with_bos, bos_doubt
from .tokenizer_export import convert_tokenizer, save_tokenizer
from .weight_files import SHARD_SIZE, stored_form, write_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..checkpoint.checkpoint_reader import CheckpointContents

logger = logging.getLogger("megatron_fwpkm")


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    dtype: str = "float32",
    fast_weights: FastWeights | None = None,
    replica: int = 0,
    max_shard_size: str = SHARD_SIZE,
    license: str | None = None,
    tokenizer: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint as a Hugging Face folder; it appears whole or not at all.

    Tensors are read one at a time: in memory are those of one file, and one more.

    Args:
        checkpoint: checkpoint folder, or a run's --save folder for its latest.
        output: folder to write.
        dtype: of the slow weights: float32, bfloat16 or float16. The memory's tables stay float32.
        fast_weights: `initial`: every text starts from the memory before any write. `trained`: from the memory as
            training left it. `none`: as `initial`, but not in the files: loading draws them. Default: what the run's
            --fwpkm-reset means, `trained` for never, else `initial`.
        replica: the data-parallel replica whose trained memory it is.
        max_shard_size: largest size of a file of weights, as "5GB".
        license: of the weights, for the model card; None says that none was given.
        tokenizer: write the tokenizer too.
        overwrite: replace an existing folder.

    Returns:
        The folder.

    Raises:
        ValueError: no checkpoint there, the folder exists, a tokenizer that cannot be written, no such replica, or
            weights that do not map (all are listed).
    """
    target = Path(output)
    check_output(target, overwrite, Path(checkpoint))
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license):
        raise ValueError(f"--license {license!r} is not an identifier such as apache-2.0 or cc-by-4.0")
    contents = checkpoint_contents(checkpoint, replica)
    with quiet_libraries(), published(target) as folder:
        memory = starting_memory(contents, "initial" if fast_weights == "none" else fast_weights)
        config = hf_config(contents, memory)
        model = empty_model(without_tables(config, contents.config) if fast_weights == "none" else config)
        tensors, parts = stored_form(model, dtype), exported_weights(contents, model, memory)
        write_weights(model, tensors, parts, folder, str(contents.path), max_shard_size)
        if tokenizer:
            data, add_bos = contents.config.data, begins_with_bos(contents)
            written = save_tokenizer(contents.tokenizer_path, data, folder, add_bos=add_bos)
            if doubt := bos_doubt(contents, written):
                logger.warning("%s", doubt)
        (folder / "README.md").write_text(model_card(contents, model, license), encoding="utf-8")
        model.config.dtype = dtype
        write_description(model, folder, [kind.name for kind in kinds_in_use(contents.config)])
    return target


def checkpoint_contents(path: str | Path, replica: int = 0) -> CheckpointContents:
    """`checkpoint_reader.read_checkpoint`, imported when it is needed and without remarks."""
    with quiet_libraries():
        installed()  # hides from Megatron what is only half installed
        from ..checkpoint.checkpoint_reader import read_checkpoint

        return read_checkpoint(path, replica)


def starting_memory(contents: CheckpointContents, chosen: StartingMemory | None) -> StartingMemory:
    """The memory that every text starts from.

    Raises:
        ValueError: a replica is chosen of fast weights that are not trained.
    """
    memory = default_memory(contents.config) if chosen is None else chosen
    if contents.replica and memory != "trained":
        raise ValueError(
            f"--replica {contents.replica} chooses among trained fast weights, but this export has the {memory} ones; "
            "add --fast-weights trained, or remove --replica"
        )
    return memory


def hf_model(
    contents: CheckpointContents, *, fast_weights: StartingMemory | None = None, dtype: str = "float32"
) -> FwPKMForCausalLM:
    """The Hugging Face model of a checkpoint's contents in memory, in evaluation mode; arguments as in `export`."""
    memory = starting_memory(contents, fast_weights)
    model = empty_model(hf_config(contents, memory))
    return filled(model, exported_weights(contents, model, memory), dtype, str(contents.path))


def hf_model_from_checkpoint(
    path: str | Path, *, tokenizer: bool = True
) -> tuple[FwPKMForCausalLM, PreTrainedTokenizerFast | None]:
    """Load an export or a Megatron checkpoint (folder, or a run's --save folder) alike.

    Returns:
        The model in evaluation mode and float32, and its tokenizer, None when there is none or it is not asked for.

    Raises:
        ValueError: the path is neither, or damaged, or its tokenizer cannot be converted, with the reason.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        contents = checkpoint_contents(folder)
        if not tokenizer:
            return hf_model(contents), None
        data, add_bos = contents.config.data, begins_with_bos(contents)
        return hf_model(contents), convert_tokenizer(contents.tokenizer_path, data, add_bos=add_bos)
    with quiet_libraries():
        config = read_export_config(folder)
        model = FwPKMForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
        if not tokenizer or not (folder / "tokenizer_config.json").is_file():
            return model, None
        return model, read_export_tokenizer(folder, model.config.vocab_size)


def usable_device(name: str) -> torch.device:
    """The device that --device names; `auto` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(chosen)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} is not available: {str(error).splitlines()[0]}") from error
    return device


def load_for_text(path: str | Path, device: str = "auto") -> tuple[FwPKMForCausalLM, PreTrainedTokenizerFast]:
    """`hf_model_from_checkpoint` on a device (`auto`: CUDA where there is one), for work that needs a tokenizer.

    On a CPU the process keeps freed memory from here on (`keep_freed_memory`).

    Raises:
        ValueError: as there; an unknown device; or no tokenizer.
    """
    target = usable_device(device)
    if target.type == "cpu":
        keep_freed_memory()
    model, tokenizer = hf_model_from_checkpoint(path)
    if tokenizer is None:
        raise ValueError(
            f"{path} contains no tokenizer to read and write text with; export again without --no-tokenizer"
        )
    model.to(target)
    return model, tokenizer
