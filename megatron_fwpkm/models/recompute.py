"""Full recompute of layers with the memories outside: a recomputed write would be a second one (DESIGN section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from megatron.core.fp8_utils import get_fp8_context
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import checkpoint
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.identity_op import IdentityOp
from torch import Tensor

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlock
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import TransformerLayer


class Unit(NamedTuple):
    """Layers [start, stop) of a block that are run together; the memory of the first stands before them."""

    start: int
    stop: int
    recomputed: bool


def recompute_units(has_memory: Sequence[bool], method: str, num_layers: int) -> list[Unit]:
    """Cut a block into units; a unit ends where a memory stands.

    Args:
        has_memory: of every layer of the block.
        method: `uniform`: units of `num_layers` layers, all recomputed; `block`: the first `num_layers` layers
            are recomputed one by one, the others not at all.
        num_layers: at least 1.
    """
    if method == "block":
        return [Unit(number, number + 1, number < num_layers) for number in range(len(has_memory))]
    starts = [number for number, memory in enumerate(has_memory) if memory or number % num_layers == 0]
    return [Unit(start, stop, True) for start, stop in zip(starts, [*starts[1:], len(has_memory)], strict=True)]


def forward_with_recompute(
    block: TransformerBlock,
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    context: Tensor | None,
    context_mask: Tensor | None,
    rotary_pos_emb: Tensor | None,
    attention_bias: Tensor | None,
    packed_seq_params: PackedSeqParams | None,
    use_inner_quantization_context: bool,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """Run the layers of `block`, keeping only the inputs of its units; takes the place of megatron's own method.

    Args:
        block: with layers of ours.
        hidden_states: [s, b, h].
        attention_mask: as `WindowedAttention` takes it.
        context: None: a decoder has no other text to attend to.
        context_mask: None, too.
        rotary_pos_emb: [s, 1 or b, 1, width].
        attention_bias: None.
        packed_seq_params: None.
        use_inner_quantization_context: whether every layer computes in an FP8 context of its own.
        padding_mask: None: only mixtures of experts use it.

    Returns:
        [s, b, h].
    """
    others = context, context_mask, attention_bias, packed_seq_params, padding_mask
    assert all(argument is None for argument in others)
    config = block.config
    has_memory = [not isinstance(layer.memory, IdentityOp) for layer in block.layers]

    for unit in recompute_units(has_memory, config.recompute_method, config.recompute_num_layers):
        layers = block.layers[unit.start : unit.stop]
        with _precision(config, layers[0], use_inner_quantization_context):
            hidden_states = layers[0].memory(hidden_states)

        def run(hidden_states: Tensor, rotary_pos_emb: Tensor | None, layers: Sequence = layers) -> Tensor:
            """Run a unit of layers without their memories."""
            for layer in layers:
                with _precision(config, layer, use_inner_quantization_context):
                    hidden_states, _ = layer.forward_without_memory(
                        hidden_states, attention_mask, rotary_pos_emb=rotary_pos_emb
                    )
            return hidden_states

        # Reentrant: without a gradient to pass on there is nothing that could start the second run.
        if unit.recomputed and hidden_states.requires_grad:
            hidden_states = _checkpoint(block, run, hidden_states, rotary_pos_emb)
        else:
            hidden_states = run(hidden_states, rotary_pos_emb)
    return hidden_states


def _precision(config: TransformerConfig, layer: TransformerLayer, own_context: bool) -> AbstractContextManager[None]:
    """The context of a layer's matrix products; with delayed scaling the whole block has one, outside of here."""
    return get_fp8_context(config, layer.layer_number - 1) if own_context else nullcontext()


def _checkpoint(block: TransformerBlock, run: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Keep the inputs only; Transformer Engine's way with FP8, for the second run must scale as the first one did."""
    if not block.config.fp8:
        return checkpoint(run, False, *inputs)
    from megatron.core.extensions.transformer_engine import te_checkpoint

    return te_checkpoint(run, False, get_cuda_rng_tracker, block.pg_collection.tp, *inputs)
