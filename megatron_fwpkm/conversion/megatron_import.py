"""From an export to a checkpoint that pretraining goes on from: the inverse of `export`, but for what it leaves out.

No model is built and no process group is needed. What an export does not hold is not made up: the checkpoint says of
itself that it has no optimizer state.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..checkpoint.checkpoint_errors import check_room
from ..checkpoint.checkpoint_reader import CheckpointContents
from ..checkpoint.manager import CheckpointManager, folder_name
from ..checkpoint.record import CONFIG_NAME, FAST_WEIGHTS_FOLDER, MODEL_FOLDER, Layout, RunRecord
from ..checkpoint.store_layout import StoreDescription
from ..checkpoint.tensor_writer import write_tensors
from ..config import CheckpointConfig, DataConfig, PretrainConfig
from ..config.derived import embedding_rows
from ..config.layer_kinds import layer_plan
from ..config.loading import Resolved, parse_pretrain
from ..config.memories import memory_numbers
from ..data.tokenizers import Tokenizer, build_tokenizer
from ..hf import FwPKMHFConfig
from ..hf.drawn_tables import tables_hash
from ..hf.stored_weights import stored_tensors
from ..libraries.probes import installed
from ..processes.freed_memory import free_large_tables
from .convert_options import ImportOptions
from .export_reading import read_export_config
from .exported_weights import weight_shapes
from .hf_folder import check_output, empty_model, published
from .import_config import imported_options
from .import_weights import PlannedWeights, planned_weights
from .library_messages import quiet_libraries
from .weight_rules import KIND_TABLES

logger = logging.getLogger("megatron_fwpkm")


def import_export(options: ImportOptions) -> Path:
    """Write an export as the --save folder of a run with one checkpoint; it appears whole or not at all.

    Args:
        options: of the command.

    Returns:
        The folder of the checkpoint, in that of the run.

    Raises:
        ValueError: no export there, or a damaged one; a model, tensor or option that does not fit; or the output
            exists.
    """
    source, target = Path(options.checkpoint), Path(options.output)
    check_output(target, options.overwrite, source)
    free_large_tables()  # pieces of tensors, too
    with quiet_libraries():
        installed()  # hides from Megatron what is only half installed
        hf = read_export_config(source)
        resolved = _resolved(hf, options)
        tokenizer = _tokenizer(source, resolved.config.data)
        record = _record(hf, resolved.config, options, tokenizer)
        model = empty_model(hf)
        contents = CheckpointContents(
            target, record.iteration, resolved.config, record.vocab_size, record.padded_vocab_size, {}, {}, None
        )
        try:
            weights = planned_weights(
                stored_tensors(source, {}), model, weight_shapes(contents), layer_plan(resolved.config)
            )
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        _check_drawn(hf, source)
        _warn(hf, resolved.config, weights)
        folder = target / folder_name(record.iteration)
        resolved = _with_tokenizer(resolved, tokenizer, folder, record.tokenizer_file)
        target.parent.mkdir(parents=True, exist_ok=True)
        check_room(folder.name, target.parent, weights.bytes)
        with (
            published(target) as root,
            CheckpointManager(root, keep_last=0).publish(record.iteration, record) as partial,
        ):
            _write(partial, weights, resolved.config)
            (partial / CONFIG_NAME).write_text(resolved.to_yaml(), encoding="utf-8")
            _copy_tokenizer(tokenizer, partial, record.tokenizer_file)
    return folder


def _resolved(hf: FwPKMHFConfig, options: ImportOptions) -> Resolved:
    """The configuration of the checkpoint: the export's model, the user's file, the flags of this command."""
    place = str(Path(options.checkpoint) / "config.json")
    words = [] if options.config is None else ["--config", options.config]
    for flag, value in (
        ("--make-vocab-size-divisible-by", options.make_vocab_size_divisible_by),
        ("--tensor-model-parallel-size", options.tensor_model_parallel_size),
    ):
        words += [] if value is None else [flag, str(value)]
    given = parse_pretrain(words)
    # Where the run of the user's file loaded, saved and measured does not matter here: another run begins.
    logs = replace(given.config.logging, log_dir=None)
    config = replace(given.config, checkpoint=CheckpointConfig(), logging=logs)
    return imported_options(hf, replace(given, config=config), place)


def _tokenizer(source: Path, data: DataConfig) -> Tokenizer | None:
    """The tokenizer that the user's file names, else the export's own; None where there is neither.

    A SentencePiece model stands in an export beside its translation: datasets were made with the model.
    """
    if data.tokenizer_model is not None or data.tokenizer_type in ("NullTokenizer", "ByteLevelTokenizer"):
        return build_tokenizer(data)
    if (file := source / "tokenizer.model").is_file():
        return build_tokenizer(DataConfig(tokenizer_type="SentencePieceTokenizer", tokenizer_model=str(file)))
    if (source / "tokenizer.json").is_file():
        return build_tokenizer(DataConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(source)))
    return None


def _record(
    hf: FwPKMHFConfig, config: PretrainConfig, options: ImportOptions, tokenizer: Tokenizer | None
) -> RunRecord:
    """What the checkpoint says of itself.

    Raises:
        ValueError: a tokenizer with more ids than the model, or a data position that nothing tells.
    """
    if tokenizer is not None and tokenizer.vocab_size > hf.vocab_size:
        raise ValueError(
            f"{tokenizer.path or tokenizer.kind} has {tokenizer.vocab_size} ids, but the model has {hf.vocab_size} "
            "token embeddings: it is not the tokenizer that the model was trained with"
        )
    samples, batch = options.consumed_samples, config.training.global_batch_size
    if samples is None:
        if options.iteration and batch is None:
            raise ValueError(
                f"--iteration {options.iteration} needs --consumed-samples, the sequences that training has read "
                "until then, or a --config file with global-batch-size"
            )
        samples = options.iteration * (batch or 0)
    return RunRecord(
        iteration=options.iteration,
        consumed_samples=samples,
        consumed_tokens=samples * config.model.seq_length,
        layout=Layout(1, 1, 1, 1, distributed_optimizer=False, bf16=False),
        vocab_size=hf.vocab_size,
        padded_vocab_size=embedding_rows(config, hf.vocab_size),
        tokenizer_hash="" if tokenizer is None else tokenizer.identity,
        tokenizer_file=_tokenizer_name(tokenizer),
        loop={"best_loss": None, "window": [], "guard": {}, "dataset_windows": 0},
        weights_only=True,
    )


def _tokenizer_name(tokenizer: Tokenizer | None) -> str | None:
    """Name of the copy in a checkpoint."""
    if tokenizer is None or tokenizer.path is None:
        return None
    return "tokenizer" if tokenizer.kind == "HuggingFaceTokenizer" else f"tokenizer{tokenizer.path.suffix}"


def _with_tokenizer(resolved: Resolved, tokenizer: Tokenizer | None, folder: Path, name: str | None) -> Resolved:
    """The configuration with the checkpoint's own copy of the tokenizer."""
    if tokenizer is None or name is None:
        return resolved
    changes: dict[str, Any] = {"tokenizer_type": tokenizer.kind, "tokenizer_model": str(folder / name)}
    sources = {f"--{flag.replace('_', '-')}": f"copied from {tokenizer.path}" for flag in changes}
    data = replace(resolved.config.data, **changes)
    config = replace(resolved.config, data=data)
    return replace(resolved, config=config, value_sources=resolved.value_sources | sources)


def _copy_tokenizer(tokenizer: Tokenizer | None, partial: Path, name: str | None) -> None:
    if tokenizer is None or tokenizer.path is None or name is None:
        return
    if tokenizer.kind != "HuggingFaceTokenizer":
        shutil.copyfile(tokenizer.path, partial / name)
        return
    (partial / name).mkdir()
    source = tokenizer.path if tokenizer.path.is_dir() else tokenizer.path.parent
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / file).is_file():
            shutil.copyfile(source / file, partial / name / file)


def _write(partial: Path, weights: PlannedWeights, config: PretrainConfig) -> None:
    """Write the tensors, with a bar on a terminal."""
    from ..checkpoint.slow_weights import write_description

    with tqdm(total=weights.bytes, unit="B", unit_scale=True, desc="import", leave=False, disable=None) as bar:
        write_tensors(partial / MODEL_FOLDER, weights.slow, bar.update)
        write_description(partial / MODEL_FOLDER)
        if weights.fast:
            write_tensors(partial / FAST_WEIGHTS_FOLDER, weights.fast, bar.update)
            StoreDescription(1, 1, config.training.seed, (0,), False).write(partial / FAST_WEIGHTS_FOLDER)


def _check_drawn(hf: FwPKMHFConfig, source: Path) -> None:
    """Raise ValueError where fast weights that the files do not have are drawn differently here."""
    rule = hf.fwpkm_drawn_tables
    if rule is not None and tables_hash(hf, rule["seed"], rule["table_dtype"]) != rule["sha256"]:
        raise ValueError(
            f"{source}: torch {torch.__version__} on this CPU draws other initial fast weights than the machine that "
            "made the export, whose files have none; import it there, or export again with --fast-weights initial"
        )


def _warn(hf: FwPKMHFConfig, config: PretrainConfig, weights: PlannedWeights) -> None:
    """Log what an export does not tell, where that matters in training."""
    numbers = memory_numbers(config)
    if "official" in (hf.fwpkm_write_scale, hf.fwmlp_write_scale) and numbers:
        logger.warning(
            "the export reads with write_scale official, the arithmetic of the paper's authors' code, which training "
            "does not have: an export of what is trained from here has consistent"
        )
    if not numbers or hf.fwpkm_memory != "initial" or hf.fwpkm_drawn_tables is not None:
        return
    kind = layer_plan(config)[numbers[0] - 1].memory
    assert kind is not None
    made = KIND_TABLES[kind](config, numbers[0])
    drawn = [name for name, table in made.items() if table.any()]  # biases begin as zeros, whatever the seed
    name = min(drawn, key=lambda table: made[table].numel())
    first = weights.fast[f"layer{numbers[0]}/replica0/{name}"].pieces[0]
    if not torch.equal(first.read(), made[name][: first.rows]):
        logger.warning(
            "the export starts every text from an initial memory that is not that of --seed %d: --fwpkm-reset step or "
            "document, or the same of --fwmlp-reset, would restore another one. Give a --config file with the seed of "
            "the run that the model is from", config.training.seed,
        )  # fmt: skip
