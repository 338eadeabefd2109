"""Builds the language model, and finds the memories in it however it is wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor, nn

from ..config import PretrainConfig
from ..config.memory_rules import memory_problems
from ..distributed.megatron_versions import replace_recompute
from ..layers.block_around_memory import MemoryBlock
from ..layers.seeding import seeded
from ..ops.yarn import Yarn
from .recompute import forward_with_recompute
from .specs import layer_specs
from .transformer_config import transformer_config


class MegatronFwPKMModel(GPTModel):
    """Megatron's GPT with memories in its layers.

    `model(tokens [b, s], position_ids [b, s], None, labels=[b, s])` returns the loss of every token [b, s];
    without labels the logits [b, s, vocabulary / tp]. In place of None may stand where documents begin, as
    `WindowedAttention` takes it: the layers hand it on to attention, also to a
    second run for recomputation.
    """

    positions_restart = False
    """Whether positions are those of `position_ids` (--reset-position-ids), not the places in the sequence."""

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Megatron's own, which rotates by the place in the sequence whatever `position_ids` say."""
        decoder_input, rotary, *others = super()._preprocess(input_ids, position_ids, *args, **kwargs)
        if self.positions_restart:
            angles = self.rotary_pos_emb.get_emb(self.max_sequence_length)  # [places, 1, 1, width]
            rotary = angles[position_ids.t()].squeeze(2)
        return decoder_input, rotary, *others

    def set_document_starts(self, document_starts: Tensor | None) -> None:
        """Say where documents begin in the next forward's sequences; used by memories with a reset at documents only.

        Args:
            document_starts: [b, s] bool, best on the CPU, True at the first token of a document; None when a sequence
                is one document.
        """
        for memory in memory_layers(self):
            memory.document_starts = document_starts


def build_model(
    config: PretrainConfig,
    padded_vocab_size: int,
    *,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
) -> MegatronFwPKMModel:
    """Build this process's part of the model, on the CPU and with weights that depend on `--seed` only.

    Megatron's parallel state must be initialised.

    Args:
        config: the whole configuration.
        padded_vocab_size: rows of the embedding.
        pre_process: build the embedding (first pipeline stage).
        post_process: build the output layer (last pipeline stage).
        vp_stage: virtual pipeline stage, with interleaved pipelines.

    Raises:
        ValueError: the layout or a layer number does not fit the model.
    """
    model = config.model
    misplaced = [line for line in memory_problems(config) if "--num-layers" in line]
    if misplaced:
        raise ValueError(misplaced[0])
    megatron_config = transformer_config(config)
    with seeded(config.training.seed, "embedding"):  # the layers seed themselves
        built = MegatronFwPKMModel(
            megatron_config,
            layer_specs(megatron_config, vp_stage),
            vocab_size=padded_vocab_size,
            max_sequence_length=model.seq_length,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
            position_embedding_type="rope",
            rotary_percent=model.rotary_percent,
            rotary_base=int(model.rotary_base),
            rope_scaling=model.use_rope_scaling,
            rope_scaling_factor=model.rope_scaling_factor,
            vp_stage=vp_stage,
        )
    if model.rope_type == "yarn":
        # Megatron's own YaRN asks for a GPU, and stretches whole heads where --rotary-percent rotates a part of them.
        original = model.yarn_original_max_position_embeddings or model.seq_length
        yarn = Yarn(model.rotary_scaling_factor, original, model.yarn_beta_fast, model.yarn_beta_slow)
        built.rotary_pos_emb.inv_freq = yarn.frequencies(built.rotary_pos_emb.inv_freq, model.rotary_base)
    built.positions_restart = config.data.reset_position_ids
    # Megatron would run memories a second time with their layers.
    replace_recompute(built.decoder, forward_with_recompute)
    if post_process and model.untie_embeddings_and_output_weights:
        _initialize_output_layer(built, config.training.seed)
    return built


@torch.no_grad()
def _initialize_output_layer(model: MegatronFwPKMModel, seed: int) -> None:
    """Draw the output layer from its own seed: what was drawn before it depends on the pipeline stage."""
    group = model.pg_collection.tp
    weight = model.output_layer.weight
    with seeded(seed, "output_layer"):
        whole = model.config.init_method(torch.empty(weight.shape[0] * group.size(), weight.shape[1]))
    weight.copy_(whole.chunk(group.size())[group.rank()])


def memory_layers(model: nn.Module | Iterable[nn.Module]) -> list[MemoryBlock]:
    """All memories of a model or of its pipeline chunks, in the order of their layers, through any wrapper."""
    chunks = [model] if isinstance(model, nn.Module) else list(model)
    found = [module for chunk in chunks for module in chunk.modules() if isinstance(module, MemoryBlock)]
    return sorted(found, key=lambda memory: memory.layer_number)


@contextmanager
def preserve_fast_weights(
    model: nn.Module | Iterable[nn.Module], keep: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Undo bit for bit at exit whatever the memories of `model` write inside, for example in an evaluation.

    Unless `keep` then says that it stays.
    """
    with ExitStack() as stack:
        for memory in memory_layers(model):
            stack.enter_context(memory.preserve_fast_weights(keep))
        yield
