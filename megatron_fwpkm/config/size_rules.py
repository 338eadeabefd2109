"""Sizes that no device holds, refused before anything is computed with them."""

from __future__ import annotations

from collections.abc import Iterator

from .kind_rows.pkm_kind import PKM
from .memories import memory_kinds
from .parameter_counts import stage_parameters
from .pretrain import PretrainConfig

_DEVICE_BYTES = 2**40
"""More than any accelerator has in 2026; whether the one at hand has enough is seen when the run starts."""


def size_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for tables and for slow weights that are too large for a rank anywhere."""
    parallel, model = config.parallel, config.model
    ranks = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    for memory in memory_kinds(config):
        size = memory.fast.bytes(config, ranks)
        if size > _DEVICE_BYTES:
            made, _, why = memory.fast.made_by(config).partition(" (")
            yield (
                f"{made} make a memory of {_bytes(size)} on each rank, more than the {_bytes(_DEVICE_BYTES)} of any "
                f"device: lower them ({why}"
            )
    parameters = stage_parameters(config, config.data.vocab_size or 1, 0).on_rank(parallel.tensor_model_parallel_size)
    weights = parameters * (2 if config.training.bf16 else 4)
    if weights > _DEVICE_BYTES:
        pkm, made = config.pkm, f"--num-layers {model.num_layers} and --hidden-size {model.hidden_size} make"
        if 2 * len(pkm.layer_numbers) * PKM.largest_weight(config) > parameters:
            made = f"--pkm-num-subkeys {pkm.num_subkeys} and --pkm-value-dim {pkm.value_dim} make"
        yield (
            f"{made} {_bytes(weights)} of slow weights on each rank, more than the {_bytes(_DEVICE_BYTES)} of any "
            "device: lower them"
        )


def _bytes(count: int) -> str:
    return f"{count / 2**40:,.1f} TiB"
