"""The tensors of an export, one read at a time: slow weights by the weight table, fast weights as they are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from ..config.derived import kv_channels, num_query_groups, outlives_sequence
from ..config.layer_kinds import layer_plan
from ..config.memories import memory_kinds, memory_numbers
from ..hf import FwPKMForCausalLM
from .convert_options import StartingMemory
from .weight_mapping import WeightPart, megatron_to_hf
from .weight_rules import KIND_TABLES, WeightShapes

if TYPE_CHECKING:
    from ..checkpoint.checkpoint_reader import CheckpointContents


def exported_weights(contents: CheckpointContents, model: FwPKMForCausalLM, memory: StartingMemory) -> list[WeightPart]:
    """Every tensor of a checkpoint's model in Hugging Face form, none of them read yet.

    Args:
        contents: of the checkpoint.
        model: an empty model, for the names that must come out.
        memory: which fast weights.

    Raises:
        ValueError: names of slow weights that do not map, of which all are listed; or no trained fast weights. Reading
            raises it for a shape that does not fit.
    """
    tables = [name for name, _ in model.named_buffers()]
    slow = set(model.state_dict()) - set(tables)
    if model.config.tie_word_embeddings:
        slow.discard("lm_head.weight")
    parts = megatron_to_hf(contents.slow, weight_shapes(contents), layer_plan(contents.config), slow)
    for number in memory_numbers(contents.config):
        prefix = f"model.layers.{number - 1}.memory."
        parts += _tables(contents, number, memory, [name for name in tables if name.startswith(prefix)])
    return parts


def _tables(
    contents: CheckpointContents, layer_number: int, memory: StartingMemory, names: list[str]
) -> list[WeightPart]:
    """The fast weights of a layer: trained ones are stored apart, initial ones are drawn together."""

    def read(*wanted: str) -> tuple[Tensor, ...]:
        """Tables by their names in the model."""
        found = fast_weights(contents, layer_number, memory)
        return tuple(found[name.rpartition(".")[2]] for name in wanted)

    if memory == "initial":
        return [WeightPart(tuple(names), partial(read, *names))]
    fast_weights(contents, layer_number, memory)  # see at once that they are there
    return [WeightPart((name,), partial(read, name)) for name in names]


def fast_weights(contents: CheckpointContents, layer_number: int, memory: StartingMemory) -> Mapping[str, Tensor]:
    """Whole fast weights of a layer (counted from 1) by name: trained ones are read when they are looked up.

    Raises:
        ValueError: the checkpoint holds no memory for the layer, or training has left nothing in it.
    """
    if memory == "trained":
        _check_outlives(contents, layer_number)
        if layer_number not in contents.fast:
            raise ValueError(f"{contents.path} contains no memory for layer {layer_number}; use --fast-weights initial")
        return contents.fast[layer_number].tables
    kind = layer_plan(contents.config)[layer_number - 1].memory
    assert kind is not None, f"layer {layer_number} has no memory"
    return KIND_TABLES[kind](contents.config, layer_number)


def _check_outlives(contents: CheckpointContents, layer_number: int) -> None:
    """Raise ValueError where training has left nothing in a memory, because every text put it back."""
    kind = layer_plan(contents.config)[layer_number - 1].memory
    for memory in memory_kinds(contents.config):
        if memory.kind.name == kind and not outlives_sequence(memory.options):
            raise ValueError(
                f"--fast-weights trained: the memory of layer {layer_number} ended with every sequence or document "
                f"(--{kind}-owner {memory.options.owner}, --{kind}-reset {memory.options.reset}), so that training has "
                "left the initial one; use --fast-weights initial"
            )


def weight_shapes(contents: CheckpointContents) -> WeightShapes:
    """What the weight table needs to know of the model."""
    model, linear = contents.config.model, contents.config.linear_attention
    groups = num_query_groups(model)
    return WeightShapes(
        groups,
        model.num_attention_heads // groups,
        kv_channels(model),
        contents.vocab_size,
        contents.padded_vocab_size,
        model.attention_output_gate,
        linear_key_heads=linear.num_key_heads,
        linear_value_heads=linear.num_value_heads,
        linear_key_dim=linear.key_head_dim,
    )


