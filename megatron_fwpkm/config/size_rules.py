"""Sizes that no device holds, refused before anything is computed with them."""

from __future__ import annotations

from collections.abc import Iterator

from .derived import table_bytes
from .kind_rows.pkm_kind import PKM
from .parameter_counts import stage_parameters
from .pretrain import PretrainConfig

_DEVICE_BYTES = 2**40
"""More than any accelerator has in 2026; whether the one at hand has enough is seen when the run starts."""


def size_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for tables and for slow weights that are too large for a rank anywhere."""
    parallel, fwpkm, model = config.parallel, config.fwpkm, config.model
    ranks = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    table = table_bytes(config, ranks) if fwpkm.layer_numbers else 0
    if table > _DEVICE_BYTES:
        if fwpkm.num_heads * fwpkm.key_dim > fwpkm.num_subkeys * fwpkm.value_dim:
            made = f"--fwpkm-num-heads {fwpkm.num_heads} and --fwpkm-key-dim {fwpkm.key_dim} make"
            why = "every head has its own sub-keys"
        else:
            made = f"--fwpkm-num-subkeys {fwpkm.num_subkeys} and --fwpkm-value-dim {fwpkm.value_dim} make"
            why = "a table has num_subkeys squared rows"
        yield (
            f"{made} a memory of {_bytes(table)} on each rank, more than the {_bytes(_DEVICE_BYTES)} of any device: "
            f"lower them ({why})"
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
