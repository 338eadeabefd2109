"""Training, validation and test windows: megatron.core's blends and GPT datasets, document boundaries, needles."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from ...config import DataConfig, PretrainConfig
from ...config.batch_schedule import samples_ahead
from ...config.derived import data_parallel_size
from ..indexed.blends import Blend, checked_dataset, parse_blend
from ..indexed.indexed_format import DatasetInfo
from ..tokenizers import Tokenizer
from .index_cache import DOCUMENT_ORDERS, MappedTokens, WholeBlend, whole_orders
from .needle_dataset import NeedleDataset

ITEM_KEYS = ("tokens", "labels", "loss_mask", "position_ids", "document_starts")
"""Fields of a window, each [s]: int64, int64, float32, int64, bool."""
SPLIT_NAMES = ("training", "validation", "test")

Windows = torch.utils.data.Dataset[dict[str, torch.Tensor]]

logger = logging.getLogger(__name__)


class DocumentWindows(GPTDataset):
    """megatron.core's GPT dataset whose items also tell where documents start.

    `document_starts[t]` is true where a new text begins: at the first token of a document (from the document index, so
    also where no end-of-document tokens were written), behind an end-of-document token, and at t = 0, because windows
    are shuffled and what a memory saw before is never what stood before in the document.
    """

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: GPTDatasetConfig) -> MappedTokens:
        """The tokens of a dataset prefix."""
        return MappedTokens(dataset_path)

    def _build_document_sample_shuffle_indices(self) -> Any:
        build = super()._build_document_sample_shuffle_indices
        return whole_orders(self, self.index_split.name, DOCUMENT_ORDERS, build)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """The window at `index`: the fields of ITEM_KEYS."""
        text = self._query_document_sample_shuffle_indices(index)[0]
        tokens = text[:-1]
        after_eod = tokens == self.config.tokenizer.eod
        starts = np.zeros(len(tokens), dtype=bool)
        starts[self._document_starts(index, len(tokens))] = True
        starts[1:] |= after_eod[:-1]
        starts[0] = True
        positions = np.arange(len(tokens))
        if self.config.reset_position_ids:
            positions = positions - np.maximum.accumulate(np.where(starts, positions, 0))
        mask = np.ones(len(tokens), dtype=np.float32)
        if self.config.eod_mask_loss:
            mask[after_eod] = 0.0
        fields = (tokens.copy(), text[1:].copy(), mask, positions, starts)
        return {key: torch.from_numpy(field) for key, field in zip(ITEM_KEYS, fields, strict=True)}

    def _document_starts(self, index: int, seq_length: int) -> np.ndarray:
        window = self.shuffle_index[index]
        (first, offset), (last, _) = self.sample_index[window], self.sample_index[window + 1]
        lengths = self.dataset.sequence_lengths[self.document_index[first:last]]
        starts = np.cumsum(lengths, dtype=np.int64) - int(offset)
        return starts[starts < seq_length]


class _Builder(BlendedMegatronDatasetBuilder):
    """mcore's builder, usable before torch.distributed is initialised: its blends ask for a rank when they cache."""

    @staticmethod
    def build_generic_dataset(
        cls: Any, is_built_on_rank: Callable[[], bool], synchronize_ranks: bool, *args: Any
    ) -> Any:
        """Build a dataset as mcore does, a blend as `WholeBlend`."""
        if cls is BlendedDataset:
            cls = WholeBlend
            if not torch.distributed.is_initialized():
                config = copy.copy(args[-1])
                config.path_to_cache = None
                args = (*args[:-1], config)
        return BlendedMegatronDatasetBuilder.build_generic_dataset(cls, is_built_on_rank, synchronize_ranks, *args)


def build_datasets(
    config: PretrainConfig, tokenizer: Tokenizer, *, global_batch_size: int | None = None
) -> tuple[Windows, Windows | None, Windows | None]:
    """Training, validation and test windows of --seq-length tokens; all ranks call it together.

    Sizes: train_iters, eval_iters, eval_iters steps of `global_batch_size` samples (default: the configured one, or
    micro-batch size times data-parallel ranks). A split that is not needed (eval_iters 0) is None; so is a test split
    without documents. Training and validation get facts mixed in when `needle.fraction` > 0. Every item depends on
    configuration and index only.

    Raises:
        ValueError: no data, missing or damaged files, a dataset made with another tokenizer or without the
            end-of-document tokens that --eod-mask-loss looks for, a split without documents, bad blends, an
            index cache that cannot be written, or needles that do not fit.
    """
    data, training = config.data, config.training
    blends = _blends(data)
    prefixes = dict.fromkeys(prefix for blend in blends if blend is not None for prefix in blend[0])
    infos = {prefix: checked_dataset(prefix, tokenizer) for prefix in prefixes}
    if data.eod_mask_loss:
        _check_eods(infos)
    batch = global_batch_size or training.global_batch_size or training.micro_batch_size * _data_parallel_size(config)
    sizes = [
        samples_ahead(training, batch, 0, training.train_iters),
        training.eval_iters * batch,
        training.eval_iters * batch,
    ]
    shared = not data.train_data_path
    shares = _split_shares(data.split) if shared else [(0.0, 1.0)] * 3
    needed = [
        sizes[i] > 0 and blend is not None and _has_documents(i, blend[0], shares[i], infos, data, shared)
        for i, blend in enumerate(blends)
    ]
    if not needed[0]:
        raise ValueError(f"--train-iters {training.train_iters} leaves nothing to train")
    if sizes[1] > 0 and not needed[1]:
        raise ValueError(
            f"--eval-iters {training.eval_iters} needs --valid-data-path; give one, or use --eval-iters 0"
        )
    gpt_config = GPTDatasetConfig(
        random_seed=training.seed,
        sequence_length=config.model.seq_length,
        blend=blends[0] if shared else None,
        blend_per_split=None
        if shared
        else [blend if wanted else None for blend, wanted in zip(blends, needed, strict=True)],
        split=data.split if shared else None,
        path_to_cache=str(_cache_folder(data, infos)),
        tokenizer=tokenizer,
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=False,
        eod_mask_loss=data.eod_mask_loss,
        create_attention_mask=False,
    )
    if shared:
        gpt_config.split_matrix = [share if wanted else None for share, wanted in zip(shares, needed, strict=True)]
    assert blends[0] is not None  # or there would be nothing to train
    logger.info("%s", _epochs(blends[0], shares[0], infos, sizes[0] * config.model.seq_length))
    built = _Builder(DocumentWindows, sizes, lambda: True, gpt_config).build()
    if config.needle.fraction > 0:
        for i in (0, 1):
            if built[i] is not None:
                built[i] = NeedleDataset(
                    built[i], config.needle, tokenizer, seq_length=config.model.seq_length, seed=training.seed, split=i
                )
    return built[0], built[1], built[2]


def _blends(data: DataConfig) -> list[Blend | None]:
    """The blend of each split; one shared blend three times with --data-path."""
    if data.data_path and (data.train_data_path or data.valid_data_path or data.test_data_path):
        raise ValueError(
            "--data-path (split by --split) and --train/valid/test-data-path are mutually exclusive; give only one"
        )
    if data.data_path:
        return [parse_blend("--data-path", data.data_path)] * 3
    if not data.train_data_path:
        raise ValueError(
            "no training data: give --data-path PREFIX (made by tools/preprocess_data.py) or --train-data-path"
        )
    return [
        parse_blend("--train-data-path", data.train_data_path),
        parse_blend("--valid-data-path", data.valid_data_path),
        parse_blend("--test-data-path", data.test_data_path),
    ]


def _split_shares(split: str) -> list[tuple[float, float]]:
    """Begin and end of each split as fractions of the documents.

    Raises:
        ValueError: not three non-negative numbers with a positive sum.
    """
    try:
        parts = [float(part) for part in split.split(",")]
    except ValueError:
        parts = []
    if len(parts) != 3 or not all(0 <= part < float("inf") for part in parts) or sum(parts) <= 0:
        raise ValueError(f"--split {split!r} must be three shares such as 969,30,1")
    ends = np.cumsum([0.0, *parts]) / sum(parts)
    return [(float(ends[i]), float(ends[i + 1])) for i in range(3)]


def _has_documents(
    number: int,
    prefixes: Sequence[str],
    share: tuple[float, float],
    infos: dict[str, DatasetInfo],
    data: DataConfig,
    shared: bool,
) -> bool:
    """Whether each dataset has tokens in this split; megatron.core loops forever where one has none, so that is refused
    here."""
    for prefix in prefixes:
        info = infos[prefix]
        if _tokens_of(info, share) > 0:
            continue
        if number == 2:
            return False
        advice = (
            f"change --split {data.split}, give --train-data-path and --valid-data-path, or prepare smaller documents"
        )
        if not shared:
            advice = "prepare it again"
        if number == 1:
            advice += ", or turn validation off with --eval-iters 0"
        raise ValueError(
            f"dataset {prefix} has no documents for {SPLIT_NAMES[number]} (of {info.documents} in total); {advice}"
        )
    return True


def _tokens_of(info: DatasetInfo, share: tuple[float, float]) -> int:
    begin, end = (int(round(edge * info.documents)) for edge in share)
    return info.tokens_between(begin, end)


def _check_eods(infos: dict[str, DatasetInfo]) -> None:
    """Refuse --eod-mask-loss where no dataset has end-of-document tokens, and name those that have none."""
    without = [prefix for prefix, info in infos.items() if _has_no_eods(info)]
    if not without:
        return
    names = f"{' '.join(without)} {'was' if len(without) == 1 else 'were'} prepared without end-of-document tokens"
    if len(without) == len(infos):
        raise ValueError(
            f"--eod-mask-loss has no effect: {names}; prepare with --append-eod, or remove the flag (document "
            "boundaries are known without it)"
        )
    logger.warning(
        "--eod-mask-loss has no effect on part of the data: %s; prepare all datasets with --append-eod", names
    )


def _has_no_eods(info: DatasetInfo) -> bool:
    """Whether the dataset's description says so; control tokens parsed in the text may be EODs that nobody counted."""
    made = info.sidecar or {}
    return made.get("eods") == 0 and made.get("options", {}).get("control_tokens") != "parse"


def _epochs(blend: Blend, share: tuple[float, float], infos: dict[str, DatasetInfo], wanted: int) -> str:
    """How often a run of `wanted` tokens goes through each of its datasets, for the log."""
    prefixes, weights = blend
    total = sum(weights) if weights else 1.0
    parts = []
    for prefix, weight in zip(prefixes, weights or [1.0], strict=True):
        held = _tokens_of(infos[prefix], share)
        parts.append(f"{wanted * weight / total / held:.3g} times the {held:,} training tokens of {prefix}")
    return f"the run uses {wanted:,} tokens: {', '.join(parts)}"


def _cache_folder(data: DataConfig, infos: dict[str, DatasetInfo]) -> Path:
    """Folder of the index caches; its name holds the datasets' fingerprints, because megatron.core's own key forgets
    what the files hold."""
    first = next(iter(infos.values()))
    root = Path(data.data_cache_path) if data.data_cache_path else Path(first.prefix).parent / "index_cache"
    name = hashlib.sha256("".join(info.fingerprint for info in infos.values()).encode()).hexdigest()[:16]
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(f"the index cache {folder} cannot be written; set --data-cache-path to a writable folder")
    return folder


def _data_parallel_size(config: PretrainConfig) -> int:
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return max(1, data_parallel_size(config, world))
