"""All differences between the supported releases of megatron-core: names, signatures, and what only one of them needs.

Nothing here compares version numbers. Each function looks at what the installed release has, and the other rooms call
the function whatever is installed. The releases themselves are listed in `config.megatron_releases`.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from ..config.megatron_releases import SUPPORTED_MEGATRON, is_supported, supported_megatron

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlock

_OWN_RECOMPUTE = "_fwpkm_recompute"
"""Attribute of a block whose layers are run by a function of ours under full recompute."""

_KINDS_OF_GROUPS = {"wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr"}
"""What a parameter group is, other than the learning rates and the weight decay that a run gives it."""

_NOTICES: dict[str, str | tuple[str, ...]] = {
    "megatron.core.dist_checkpointing.strategies.common": "load_common is deprecated",
    "megatron.core.dist_checkpointing.strategies.torch": "MCore's async save is deprecated",
    "megatron.core.distributed.distributed_data_parallel": "DistributedDataParallel: full_param_layout not provided",
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    "megatron.core.transformer.transformer_layer": ("Rewrapping ModuleSpec", "Unknown MLP type"),
}
"""Advice to Megatron's developers that is logged at every start, most of it by newer releases, by the logger's name."""

_WARNINGS = (
    "MimoModelConfig is experimental",
    "The argument order of load has been changed",
    "torch.distributed is .*assuming the intent is to load in a single process",
)
"""What newer releases warn of, or let torch warn of, whenever they are imported or load a checkpoint."""


def warn_of_other_release(what: str) -> None:
    """Warn where the installed megatron-core is none of the releases that `what` was written for."""
    version = importlib.metadata.version("megatron-core")
    if not is_supported(version):
        warnings.warn(
            f"megatron-core {version} is installed but {what} was written for {supported_megatron()}: expect errors, "
            f"or install megatron-core=={SUPPORTED_MEGATRON[-1]}",
            UserWarning,
            stacklevel=3,
        )


def part_of_context_rank(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """This rank's two pieces of the sequences of a batch, by Megatron's parallel state.

    Newer releases want to be told that the ranks of a group share every sequence.
    """
    from megatron.core import parallel_state
    from megatron.core.utils import get_batch_on_this_cp_rank

    options: dict[str, Any] = {"cp_group": parallel_state.get_context_parallel_group()}
    if "is_hybrid_cp" in inspect.signature(get_batch_on_this_cp_rank).parameters:
        options["is_hybrid_cp"] = False
    part: dict[str, Tensor] = get_batch_on_this_cp_rank(batch, **options)
    return part


def replace_recompute(block: TransformerBlock, run: Callable[..., Tensor]) -> None:
    """Let `run(block, hidden_states=..., ...)` run the layers of `block` under full recompute.

    Older releases have a method for that; in newer ones the block calls a function of its module, which is replaced by
    one that looks at the block.
    """
    from megatron.core.transformer import transformer_block

    if hasattr(transformer_block.TransformerBlock, "_checkpointed_forward"):
        block._checkpointed_forward = partial(run, block)
        return
    original = transformer_block.checkpointed_forward
    if not hasattr(original, _OWN_RECOMPUTE):

        def checkpointed_forward(block: TransformerBlock, **inputs: Any) -> Any:
            """Megatron's function, or the block's own."""
            own = getattr(block, _OWN_RECOMPUTE, None)
            if own is None:
                return original(block, **inputs)
            assert not inputs.pop("extract_layer_indices"), "nothing asks for hidden states between the layers"
            del inputs["layer_offset"]
            return own(**inputs)

        setattr(checkpointed_forward, _OWN_RECOMPUTE, True)
        transformer_block.checkpointed_forward = checkpointed_forward
    setattr(block, _OWN_RECOMPUTE, partial(run, block))


def no_cuda_graphs() -> dict[str, Any]:
    """Options of Megatron's transformer configuration: no modules for CUDA graphs; some releases warn of the default.

    The option has another name in newer releases.
    """
    from megatron.core.transformer.transformer_config import TransformerConfig

    names = {field.name for field in fields(TransformerConfig)}
    return {"cuda_graph_modules" if "cuda_graph_modules" in names else "cuda_graph_scope": []}


@contextmanager
def groups_found_by_kind() -> Iterator[None]:
    """Inside, an optimizer that loads its state finds the saved group of each of its parameter groups by its kind.

    Newer releases compare learning rates and weight decay, too, and refuse to load those of a run with others.
    """
    from megatron.core.optimizer import distrib_optimizer, optimizer

    keys = optimizer.param_group_identifier_keys
    for module in (optimizer, distrib_optimizer):
        module.param_group_identifier_keys = tuple(key for key in keys if key in _KINDS_OF_GROUPS)
    try:
        yield
    finally:
        for module in (optimizer, distrib_optimizer):
            module.param_group_identifier_keys = keys


def adapt_writers(prepare: Callable[[], None]) -> None:
    """Adapt what writes the files of a checkpoint; called once.

    Older releases fork processes for it; each calls `prepare` first. Newer ones write in threads of the process that
    was told to write, and lose the reason when one fails: here it is kept.
    """
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    if hasattr(FileSystemWriterAsync, "write_preloaded_data_multithread"):
        write_all = FileSystemWriterAsync.write_preloaded_data_multithread
        FileSystemWriterAsync.write_preloaded_data_multithread = staticmethod(partial(_write_with_reasons, write_all))
        return
    write = FileSystemWriterAsync.write_preloaded_data

    def prepared(*arguments: Any, **named: Any) -> None:
        """Prepare the process, and write."""
        prepare()
        write(*arguments, **named)

    FileSystemWriterAsync.write_preloaded_data = staticmethod(prepared)


def _write_with_reasons(write_all: Callable[..., None], *arguments: Any) -> None:
    """Megatron's function that writes in threads; the last argument is the queue for the results or the error."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    write, errors = FileSystemWriterAsync.write_preloaded_data, []
    results: Queue[Any] = Queue()

    def noting(*arguments: Any, results_queue: Queue[Any] | None, **named: Any) -> Any:
        """Write one file; a thread answers over its queue, the caller itself takes what is returned."""
        own: Queue[Any] = Queue()
        output = write(*arguments, results_queue=None if results_queue is None else own, **named)
        if results_queue is not None:
            output = own.get_nowait()
            results_queue.put(output)
        if isinstance(output[1], Exception):
            errors.append(output[1])
        return output

    FileSystemWriterAsync.write_preloaded_data = staticmethod(noting)
    try:
        write_all(*arguments[:-1], results)
    except AssertionError:  # of the kind of a result
        if not errors:
            raise
    finally:
        FileSystemWriterAsync.write_preloaded_data = staticmethod(write)
    arguments[-1].put(errors[0] if errors else results.get_nowait())


def load_checkpoint(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fill `state` from the checkpoint in `folder`, whichever release wrote it; called by every rank.

    What is not a tensor stands in a file of its own in checkpoints of older releases, and among the tensors in those of
    newer ones, where older releases do not look.
    """
    from megatron.core import dist_checkpointing

    options: dict[str, Any] = {}
    known = inspect.signature(dist_checkpointing.load).parameters
    if "common_strategy" in known and not (folder / "common.pt").exists():
        from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy

        class AmongTensors(TorchCommonLoadStrategy):
            """Reads what is not a tensor from among the tensors."""

            def load_common(self, checkpoint_dir: str) -> dict[str, Any]:
                """Read it."""
                return _read_common_state(Path(checkpoint_dir))

        options["common_strategy"] = AmongTensors()
    loaded: dict[str, Any] = dist_checkpointing.load(state, str(folder), **options)
    return loaded


def _read_common_state(folder: Path) -> dict[str, Any]:
    key = "common_state/shard_0_1"
    found: dict[str, Any] = {key: io.BytesIO()}
    dcp.load(found, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    held = found[key]
    if isinstance(held, io.BytesIO):
        held.seek(0)
        held = torch.load(held, weights_only=True)
    common: dict[str, Any] = held[0]
    return common


def own_background_writer() -> dict[str, Any]:
    """Options of `dist_checkpointing.save`: the writer is Megatron's own; newer releases ask for another package."""
    from megatron.core import dist_checkpointing

    known = inspect.signature(dist_checkpointing.save).parameters
    return {"async_strategy": "mcore"} if "async_strategy" in known else {}


def silence_notices() -> None:
    """Leave out what newer releases say to Megatron's own developers whenever a model is built."""
    for text in _WARNINGS:
        warnings.filterwarnings("ignore", message=text)
    for name, beginnings in _NOTICES.items():
        logging.getLogger(name).addFilter(_without(beginnings))


@cache
def _without(text: str | tuple[str, ...]) -> Callable[[logging.LogRecord], bool]:
    """A filter that drops the messages which begin with `text`, or one of several; the same one for the same text."""
    return lambda record: not str(record.msg).startswith(text)


def define_missing_names() -> None:
    """Define a name that 0.16.1 defines only with Transformer Engine, but reads without it: a NameError otherwise."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
