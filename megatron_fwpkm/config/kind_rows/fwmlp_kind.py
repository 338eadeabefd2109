"""The fast-weight MLP."""

from __future__ import annotations

from collections.abc import Sequence

from ..derived import ShardedCount, outlives_sequence
from ..layer_kind import FastWeights, LayerKind, Role, TableTraffic, layers_in_words, weight_bytes
from ..pretrain import PretrainConfig

_HIDDEN_TEMPORARIES = 14
"""Numbers per token and hidden channel that the backward pass of a chunk has at once."""


def _parameters(config: PretrainConfig) -> ShardedCount:
    """Norms and linears of the block, which have biases; query, gate and their norms are on every rank."""
    fwmlp, hidden, width = config.fwmlp, config.model.hidden_size, config.fwmlp.value_dim
    gate = hidden + hidden + 1 if fwmlp.gate else 0
    return ShardedCount(
        sharded=(hidden + 1) * width + width + width * hidden,
        replicated=hidden + (hidden + 1) * fwmlp.key_dim + gate + hidden + hidden,
    )


def _activation_bytes(config: PretrainConfig) -> ShardedCount:
    """Copies of the fast weights apart. A rank has queries, values and reads of the tokens of all context ranks."""
    fwmlp = config.fwmlp
    everyones = 4 * (2 * fwmlp.key_dim + 4 * fwmlp.value_dim)
    own = (10 + 7 * weight_bytes(config) // 2) * config.model.hidden_size
    return ShardedCount(18 * fwmlp.value_dim, own + everyones * config.parallel.context_parallel_size)


def _flops(config: PretrainConfig, layer_number: int) -> float:
    """Linears and read; the gradient of all fast weights unless they are frozen."""
    fwmlp, hidden = config.fwmlp, config.model.hidden_size
    linears = hidden * (fwmlp.key_dim + 2 * fwmlp.value_dim + int(fwmlp.gate))
    read = fwmlp.hidden_size * (2 * fwmlp.key_dim + fwmlp.value_dim)
    write = 2 * fwmlp.hidden_size * (fwmlp.key_dim + fwmlp.value_dim) if fwmlp.inner_lr else 0
    return 2.0 * (linears + read + write)


def _traffic(config: PretrainConfig, distinct: float) -> TableTraffic:
    """The weights once per chunk for its read, its write and the copy that backward reads."""
    once = _bytes(config, 1) / _chunk_tokens(config)
    return TableTraffic(reads=once, writes=once if config.fwmlp.inner_lr else 0.0, undo_log=once)


def _elements(config: PretrainConfig, ranks: int) -> int:
    """The output bias is on every rank."""
    fwmlp = config.fwmlp
    return fwmlp.hidden_size * (2 * (fwmlp.key_dim + 1) + fwmlp.value_dim) // ranks + fwmlp.value_dim


def _bytes(config: PretrainConfig, ranks: int) -> int:
    return 4 * _elements(config, ranks)


def _sharing_ranks(config: PretrainConfig) -> int:
    return config.parallel.tensor_model_parallel_size * config.parallel.context_parallel_size


def _calls(config: PretrainConfig) -> int:
    """Least number of calls per micro-batch: sequences that do not share the weights go through them alone."""
    return 1 if outlives_sequence(config.fwmlp) else config.training.micro_batch_size


def _chunk_tokens(config: PretrainConfig) -> int:
    """Tokens of a chunk of all sequences of a call."""
    tokens = min(config.fwmlp.chunk_size, config.model.seq_length)
    return tokens * config.training.micro_batch_size // _calls(config)


def _kept_bytes(config: PretrainConfig) -> int:
    """The weights before every write of every call; the first are those of the state."""
    chunks = -(-config.model.seq_length // config.fwmlp.chunk_size)
    return _calls(config) * chunks * _bytes(config, _sharing_ranks(config))


def _beside_bytes(config: PretrainConfig, replicas: int) -> int:
    """The initial weights, where a reset puts them back."""
    return 0 if config.fwmlp.reset == "never" else _bytes(config, _sharing_ranks(config))


def _passing_bytes(config: PretrainConfig) -> int:
    """Gradients of the weights, and what backward computes of a chunk again."""
    fwmlp, ranks = config.fwmlp, _sharing_ranks(config)
    temporaries = _HIDDEN_TEMPORARIES * _chunk_tokens(config) * fwmlp.hidden_size // ranks
    return 3 * _bytes(config, ranks) + 4 * temporaries


def _reach(config: PretrainConfig, layer_number: int) -> str:
    fwmlp = config.fwmlp
    return f"FwMLP {fwmlp.key_dim}-{fwmlp.hidden_size}-{fwmlp.value_dim}, chunk {fwmlp.chunk_size}"


def _summary(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    where = layers_in_words(number - 1 for number in layer_numbers)
    return (
        f"Before the token mixer of {where} (counted from 0) stands a fast-weight MLP, trained by gradient "
        f"descent after every {config.fwmlp.chunk_size} tokens, in inference too."
    )


def _divided(config: PretrainConfig) -> dict[str, int]:
    return {"--fwmlp-hidden-size": config.fwmlp.hidden_size, "--fwmlp-value-dim": config.fwmlp.value_dim}


def _made_by(config: PretrainConfig) -> str:
    fwmlp = config.fwmlp
    return (
        f"--fwmlp-hidden-size {fwmlp.hidden_size} (times --fwmlp-key-dim {fwmlp.key_dim} and --fwmlp-value-dim "
        f"{fwmlp.value_dim})"
    )


FWMLP = LayerKind(
    name="fwmlp",
    role=Role.MEMORY,
    label="fast-weight MLP block",
    parameters=_parameters,
    activation_bytes=_activation_bytes,
    flops=_flops,
    traffic=_traffic,
    reach=_reach,
    summary=_summary,
    divided=_divided,
    fp8_widths=lambda config: {
        "--fwmlp-key-dim": config.fwmlp.key_dim,
        "--fwmlp-value-dim": config.fwmlp.value_dim // config.parallel.tensor_model_parallel_size,
    },
    fast_weights=FastWeights(
        options=lambda config: config.fwmlp,
        prefix="--fwmlp-",
        elements=_elements,
        bytes=_bytes,
        shared=lambda config: {"--fwmlp-hidden-size": config.fwmlp.hidden_size},
        made_by=_made_by,
        kept_bytes=_kept_bytes,
        document_bytes=lambda config: _bytes(config, _sharing_ranks(config)),
        beside_bytes=_beside_bytes,
        passing_bytes=_passing_bytes,
    ),
    context_parallel=True,
    separates_documents=True,
)
"""Its row."""
