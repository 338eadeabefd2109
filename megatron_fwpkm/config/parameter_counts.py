"""Slow weights of a model, counted before it is built: exact, by part and by pipeline stage."""

from __future__ import annotations

from .derived import ShardedCount, embedding_rows, stage_layers
from .layer_kind import LAYER_KINDS, LayerKind, Role
from .layer_kinds import count_parts, kinds_in_use, layers_of
from .pretrain import PretrainConfig


def kind_parameters(config: PretrainConfig, kind: LayerKind) -> ShardedCount:
    """One part of a layer; of a token mixer or an MLP with the norm that the layer puts before it."""
    norm = 0 if kind.role is Role.MEMORY else config.model.hidden_size
    return kind.parameters(config) + ShardedCount(replicated=norm)


def parameters_by_part(config: PretrainConfig, vocab_size: int) -> dict[str, ShardedCount]:
    """Slow weights of the whole model by part; `vocab_size` is the tokenizer's, padding is added here."""
    model = config.model
    padded = embedding_rows(config, vocab_size)
    embedding = ShardedCount(sharded=padded * model.hidden_size)
    parts = {
        "embedding": embedding,
        **{kind.label: kind_parameters(config, kind) * len(layers_of(config, kind)) for kind in kinds_in_use(config)},
        "final norm": ShardedCount(replicated=model.hidden_size),
    }
    if model.untie_embeddings_and_output_weights:
        parts["output"] = embedding
    return parts


def num_parameters(config: PretrainConfig, vocab_size: int) -> int:
    """Slow weights of the whole model; `vocab_size` is the tokenizer's, padding is added here."""
    return sum(part.total for part in parameters_by_part(config, vocab_size).values())


def stage_parameters(config: PretrainConfig, vocab_size: int, stage: int) -> ShardedCount:
    """Slow weights of a pipeline stage over all its tensor-parallel ranks; tied embeddings live on both ends."""
    last = config.parallel.pipeline_model_parallel_size - 1
    parts = parameters_by_part(config, vocab_size)
    found = ShardedCount()
    for layer, count in count_parts(config, stage_layers(config, stage)).items():
        for name in layer.names:
            found += kind_parameters(config, LAYER_KINDS[name]) * count
    if stage == 0:
        found += parts["embedding"]
    if stage == last:
        found += parts["final norm"]
        if "output" in parts or last > 0:
            found += parts.get("output", parts["embedding"])
    return found
