"""What a layer can be made of: [memory] + token mixer + MLP, each part of a kind, and a row here for every kind.

What is asked of a layer before anything runs (parameters, bytes, what divides over ranks, how far it sees) is looked up
here by the kinds of its parts. Three more tables follow from the names: `models.kind_specs` (modules for Megatron),
`conversion.weight_rules` (names of weights) and `hf.kind_modules` (modules and caches for Transformers). A kind from
outside the package registers itself in all four.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from .derived import (
    ShardedCount,
    ffn_hidden_size,
    kv_channels,
    layer_windows,
    num_query_groups,
    num_slots,
)
from .pretrain import PretrainConfig

_PAIR_BYTES = 64
"""Per token, head and slot read: index, weight, score and what the key update's second derivative keeps."""


class Role(Enum):
    """The part of a layer that a kind can be."""

    MEMORY = "memory"
    MIXER = "token mixer"
    MLP = "mlp"


def _nothing(config: PretrainConfig) -> dict[str, int]:
    return {}


def _unsaid(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    return ""


@dataclass(frozen=True)
class LayerKind:
    """A kind of a part of layers: its row in the table.

    Attributes:
        name: as options and error messages have it.
        role: the part that it is.
        label: its row in a table of parameters.
        parameters: slow weights of one; the norm that a layer puts before a token mixer or an MLP is not among them.
        activation_bytes: about what autograd saves for one of a rank's tokens; `sharded` is of all tensor-parallel
            ranks together.
        reach: of one layer, what a token gets of the others, for the table of layers.
        summary: a sentence on some layers (numbers from 1) for people who use the trained model.
        divided: flags and values of what is spread over tensor-parallel ranks, which must divide it.
        fp8_widths: inputs and outputs of its linears on one rank, by what they are called: FP8 takes whole blocks.
        context_parallel: it runs with --context-parallel-size above 1.
        separates_documents: it keeps documents apart with --reset-attention-mask.
    """

    name: str
    role: Role
    label: str
    parameters: Callable[[PretrainConfig], ShardedCount]
    activation_bytes: Callable[[PretrainConfig], ShardedCount]
    reach: Callable[[PretrainConfig, int], str] = lambda config, layer_number: ""
    summary: Callable[[PretrainConfig, Sequence[int]], str] = _unsaid
    divided: Callable[[PretrainConfig], dict[str, int]] = _nothing
    fp8_widths: Callable[[PretrainConfig], dict[str, int]] = _nothing
    context_parallel: bool = False
    separates_documents: bool = False


LAYER_KINDS: dict[str, LayerKind] = {}
"""All kinds by name."""


def register_layer_kind(kind: LayerKind) -> None:
    """Add a row to the table; a second one of the same name takes its place."""
    LAYER_KINDS[kind.name] = kind


class LayerParts(NamedTuple):
    """Kinds of the parts of one layer, by name."""

    memory: str | None
    mixer: str
    mlp: str

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds that are there, in the order in which text passes through them."""
        return tuple(name for name in self if name is not None)


def layer_plan(config: PretrainConfig) -> tuple[LayerParts, ...]:
    """What every layer of the model is made of; --token-mixer must be valid."""
    model = config.model
    mixers = model.token_mixer * model.num_layers if len(model.token_mixer) == 1 else model.token_mixer
    return _plan(mixers, frozenset(config.fwpkm.layer_numbers))


@lru_cache(maxsize=8)
def _plan(mixers: tuple[str, ...], with_memory: frozenset[int]) -> tuple[LayerParts, ...]:
    return tuple(
        LayerParts("fwpkm" if number in with_memory else None, mixer, "swiglu")
        for number, mixer in enumerate(mixers, 1)
    )


def kinds_in_use(config: PretrainConfig) -> tuple[LayerKind, ...]:
    """The kinds that the model has: token mixers, MLPs, memories, each in the order of their first layers."""
    plan = list(dict.fromkeys(layer_plan(config)))
    by_role = ([parts.mixer for parts in plan], [parts.mlp for parts in plan], [parts.memory for parts in plan])
    return tuple(LAYER_KINDS[name] for names in by_role for name in dict.fromkeys(names) if name is not None)


def layers_of(config: PretrainConfig, kind: LayerKind) -> tuple[int, ...]:
    """Numbers (from 1) of the layers that have a part of this kind."""
    return tuple(number for number, parts in enumerate(layer_plan(config), 1) if kind.name in parts)


def count_parts(config: PretrainConfig, layer_numbers: Iterable[int]) -> Counter[LayerParts]:
    """How many of some layers (numbers from 1) are made alike."""
    plan = layer_plan(config)
    return Counter(plan[number - 1] for number in layer_numbers)


def _attention_parameters(config: PretrainConfig) -> ShardedCount:
    model = config.model
    hidden, head, bias = model.hidden_size, kv_channels(model), int(model.add_bias_linear)
    queries, keys = model.num_attention_heads * head, num_query_groups(model) * head
    return ShardedCount(
        sharded=(hidden + bias) * (queries + 2 * keys) + queries * hidden,
        replicated=bias * hidden + (2 * head if model.qk_layernorm else 0),
    )


def _attention_activation_bytes(config: PretrainConfig) -> ShardedCount:
    model, size = config.model, _weight_bytes(config)
    queries = model.num_attention_heads * kv_channels(model)
    keys_and_values = 2 * num_query_groups(model) * kv_channels(model)
    # Context-parallel ranks attend to the keys and values of all.
    everyones = (6 + size) * keys_and_values * config.parallel.context_parallel_size
    return ShardedCount(sharded=(8 + 3 * size) * queries + everyones)


def _attention_reach(config: PretrainConfig, layer_number: int) -> str:
    window = layer_windows(config.model)[layer_number - 1]
    if window is None:
        return "all tokens before"
    return f"itself and {window:,} token{'s' * (window != 1)} before"


def _attention_summary(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    windows = [layer_windows(config.model)[number - 1] for number in layer_numbers]
    short = sorted({window + 1 for window in windows if window is not None})  # a token sees itself, too
    sees = [f"windows of {', '.join(map(str, short))} tokens"] if short else []
    if None in windows:
        sees.append(f"the whole text in {windows.count(None)} of {config.model.num_layers} layers")
    return f"Attention sees {' and '.join(sees)}."


def _attention_fp8_widths(config: PretrainConfig) -> dict[str, int]:
    model, ranks = config.model, config.parallel.tensor_model_parallel_size
    head, groups = kv_channels(model), num_query_groups(model)
    return {
        "the width of all query heads": model.num_attention_heads * head // ranks,
        "the width of all query, key and value heads": (model.num_attention_heads + 2 * groups) * head // ranks,
    }


def _swiglu_parameters(config: PretrainConfig) -> ShardedCount:
    model = config.model
    hidden, ffn, bias = model.hidden_size, ffn_hidden_size(model), int(model.add_bias_linear)
    return ShardedCount(sharded=(hidden + bias) * 2 * ffn + ffn * hidden, replicated=bias * hidden)


def _swiglu_activation_bytes(config: PretrainConfig) -> ShardedCount:
    training = config.training
    if training.recompute_granularity == "selective" and "mlp" in training.recompute_modules:
        return ShardedCount()
    return ShardedCount(sharded=5 * _weight_bytes(config) * ffn_hidden_size(config.model))


def _fwpkm_parameters(config: PretrainConfig) -> ShardedCount:
    """Four norms and linears (DESIGN section 2); linears have biases."""
    fwpkm, hidden, width = config.fwpkm, config.model.hidden_size, config.fwpkm.value_dim
    query = hidden + (hidden + 1) * fwpkm.num_heads * fwpkm.key_dim
    gate = hidden + hidden + 1 if fwpkm.gate else 0
    return ShardedCount(
        sharded=(hidden + 1) * width + width + width * hidden,  # value_proj, output_norm, output_proj.weight
        replicated=query + gate + hidden + hidden,  # value_norm and output_proj.bias
    )


def _fwpkm_activation_bytes(config: PretrainConfig) -> ShardedCount:
    """Undo logs apart. A rank has queries and reads of the tokens of all context-parallel ranks."""
    fwpkm = config.fwpkm
    everyones = 5 * fwpkm.num_heads * fwpkm.key_dim + _PAIR_BYTES * fwpkm.num_heads * fwpkm.topk
    own = (10 + 7 * _weight_bytes(config) // 2) * config.model.hidden_size
    # Values of all tokens in fewer columns are as many as those of this rank's tokens.
    return ShardedCount(18 * fwpkm.value_dim, own + everyones * config.parallel.context_parallel_size)


def _fwpkm_fp8_widths(config: PretrainConfig) -> dict[str, int]:
    """The gate has one output: its linear is never in FP8."""
    fwpkm, ranks = config.fwpkm, config.parallel.tensor_model_parallel_size
    return {
        "--fwpkm-num-heads times --fwpkm-key-dim": fwpkm.num_heads * fwpkm.key_dim,
        "--fwpkm-value-dim": fwpkm.value_dim // ranks,
    }


def _fwpkm_reach(config: PretrainConfig, layer_number: int) -> str:
    fwpkm = config.fwpkm
    heads = f"{fwpkm.num_heads:,} head{'s' * (fwpkm.num_heads != 1)}"
    return (
        f"FwPKM {num_slots(fwpkm):,} slots x {fwpkm.value_dim}, {heads} top-{fwpkm.topk}, chunk {fwpkm.chunk_size}"
    )


def _weight_bytes(config: PretrainConfig) -> int:
    return 2 if config.training.bf16 else 4


register_layer_kind(
    LayerKind(
        name="attention",
        role=Role.MIXER,
        label="attention",
        parameters=_attention_parameters,
        activation_bytes=_attention_activation_bytes,
        reach=_attention_reach,
        summary=_attention_summary,
        divided=lambda config: {
            "--num-attention-heads": config.model.num_attention_heads,
            "--num-query-groups": num_query_groups(config.model),
        },
        fp8_widths=_attention_fp8_widths,
        context_parallel=True,
        separates_documents=True,
    )
)
register_layer_kind(
    LayerKind(
        name="swiglu",
        role=Role.MLP,
        label="mlp",
        parameters=_swiglu_parameters,
        activation_bytes=_swiglu_activation_bytes,
        divided=lambda config: {"--ffn-hidden-size": ffn_hidden_size(config.model)},
        fp8_widths=lambda config: {
            "--ffn-hidden-size": ffn_hidden_size(config.model) // config.parallel.tensor_model_parallel_size
        },
        context_parallel=True,
        separates_documents=True,
    )
)
register_layer_kind(
    LayerKind(
        name="fwpkm",
        role=Role.MEMORY,
        label="memory",
        parameters=_fwpkm_parameters,
        activation_bytes=_fwpkm_activation_bytes,
        reach=_fwpkm_reach,
        divided=lambda config: {
            "--fwpkm-num-subkeys": config.fwpkm.num_subkeys,
            "--fwpkm-value-dim": config.fwpkm.value_dim,
        },
        fp8_widths=_fwpkm_fp8_widths,
        context_parallel=True,
        separates_documents=True,
    )
)
