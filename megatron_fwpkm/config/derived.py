"""Sizes that follow from a configuration: pure arithmetic, exact, shared by the model, --dry-run, exports and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .fwpkm import FwPKMConfig
from .model import ModelConfig
from .pretrain import PretrainConfig

_SUB_KEY_BYTES = 4
"""Sub-keys are float32 always (DESIGN section 2.6)."""


def ffn_hidden_size(model: ModelConfig) -> int:
    """Width of the SwiGLU MLP: --ffn-hidden-size, else 8/3 of the hidden size rounded up to a multiple of 64."""
    if model.ffn_hidden_size is not None:
        return model.ffn_hidden_size
    return round_up(-(-model.hidden_size * 8 // 3), 64)


def kv_channels(model: ModelConfig) -> int:
    """Width of one attention head: --kv-channels, else hidden size / attention heads."""
    return model.hidden_size // model.num_attention_heads if model.kv_channels is None else model.kv_channels


def num_query_groups(model: ModelConfig) -> int:
    """Number of key/value heads: --num-query-groups, else one per query head."""
    return model.num_attention_heads if model.num_query_groups is None else model.num_query_groups


def rotary_dim(model: ModelConfig) -> int:
    """Rotated width of every attention head."""
    return int(kv_channels(model) * model.rotary_percent)


def mean_tokens_seen(seq_length: int, window: int | None) -> float:
    """Tokens that a token sees, itself included, on average over a sequence.

    `window` is the number of tokens before it that it sees at most, None for all.
    """
    before = seq_length - 1 if window is None else min(window, seq_length - 1)
    return before + 1 - before * (before + 1) / (2 * seq_length)  # the first ones see fewer: 1, 2, ..., before


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel: int) -> int:
    """Rows of the embedding: the vocabulary, rounded up to a multiple of `divisible_by` times the TP size."""
    return round_up(vocab_size, divisible_by * tensor_parallel)


def embedding_rows(config: PretrainConfig, vocab_size: int) -> int:
    """Rows of the token embedding over all ranks: the vocabulary, padded to what the layout divides."""
    return padded_vocab_size(
        vocab_size, config.model.make_vocab_size_divisible_by, config.parallel.tensor_model_parallel_size
    )


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


class MemoryLifetime(Protocol):
    """What options of a memory say about how long it lives."""

    @property
    def reset(self) -> str:
        """When the initial memory is put back: `never`, `step` or `document`."""

    @property
    def owner(self) -> str:
        """Whom the memory belongs to: `micro-batch` or `sequence`."""


def outlives_sequence(memory: MemoryLifetime) -> bool:
    """Whether a sequence reads what others wrote, so that the sequences of a micro-batch go through a memory together.

    Otherwise every sequence, or every document of it, starts from the initial memory, and its writes end with it.
    """
    return memory.reset != "document" and memory.owner == "micro-batch"


def num_slots(fwpkm: FwPKMConfig) -> int:
    """Rows of one memory's values table."""
    return fwpkm.num_subkeys**2


def data_parallel_size(config: PretrainConfig, world_size: int) -> int:
    """Replicas among `world_size` processes, a multiple of `replica_size`."""
    return world_size // replica_size(config)


def replica_size(config: PretrainConfig) -> int:
    """Processes that hold one replica: tensor-parallel times pipeline times context-parallel size."""
    parallel = config.parallel
    return parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size


def global_batch_size(config: PretrainConfig, data_parallel: int) -> int:
    """Sequences per step: --global-batch-size, else one micro-batch per replica."""
    if config.training.global_batch_size is None:
        return config.training.micro_batch_size * data_parallel
    return config.training.global_batch_size


def micro_batches(config: PretrainConfig, replicas: int) -> int:
    """Micro-batches per step on every replica."""
    return max(1, global_batch_size(config, replicas) // (config.training.micro_batch_size * replicas))


def micro_batches_in_flight(config: PretrainConfig, replicas: int, stage: int) -> float:
    """Micro-batches whose activations a stage keeps at once; in an interleaved schedule counted per model chunk."""
    parallel = config.parallel
    stages, chunks = parallel.pipeline_model_parallel_size, parallel.num_virtual_stages_per_pipeline_rank
    total = micro_batches(config, replicas)
    if chunks == 1:
        return min(stages - stage, total)
    return min(2 * (stages - stage - 1) + (chunks - 1) * stages + 1, total * chunks) / chunks


def table_elements(config: PretrainConfig, ranks: int = 1) -> int:
    """Fast weights of one memory on each of `ranks` that share it: columns of the values and rows of the sub-keys."""
    fwpkm = config.fwpkm
    return (num_slots(fwpkm) * fwpkm.value_dim + sub_key_elements(config)) // ranks


def sub_key_elements(config: PretrainConfig) -> int:
    """Numbers in all sub-keys of one memory."""
    fwpkm = config.fwpkm
    return fwpkm.num_heads * fwpkm.num_subkeys * fwpkm.key_dim


def table_bytes(config: PretrainConfig, ranks: int = 1) -> int:
    """Bytes of one memory's tables on each of `ranks` that share it."""
    values = num_slots(config.fwpkm) * config.fwpkm.value_dim * value_bytes(config)
    return (values + _SUB_KEY_BYTES * sub_key_elements(config)) // ranks


def value_bytes(config: PretrainConfig) -> int:
    """Bytes of one number in a values table."""
    return 2 if config.fwpkm.table_dtype == "bf16" else 4


@dataclass(frozen=True)
class ShardedCount:
    """A number of parameters or bytes: `sharded` ones are spread over tensor-parallel ranks."""

    sharded: int = 0
    replicated: int = 0

    def on_rank(self, tensor_parallel: int) -> int:
        """What one tensor-parallel rank holds."""
        return self.sharded // tensor_parallel + self.replicated

    @property
    def total(self) -> int:
        """All ranks together."""
        return self.sharded + self.replicated

    def __add__(self, other: ShardedCount) -> ShardedCount:
        return ShardedCount(self.sharded + other.sharded, self.replicated + other.replicated)

    def __mul__(self, count: int) -> ShardedCount:
        return ShardedCount(self.sharded * count, self.replicated * count)


def chunk_layers(config: PretrainConfig) -> int:
    """Layers of a model chunk: of a pipeline stage, or of one of the parts of an interleaved one; rounded down."""
    parallel = config.parallel
    chunks = parallel.pipeline_model_parallel_size * parallel.num_virtual_stages_per_pipeline_rank
    return config.model.num_layers // chunks


def stage_layers(config: PretrainConfig, stage: int) -> tuple[int, ...]:
    """Layer numbers (from 1) of a pipeline stage, all its chunks together; the chunks must divide the layers."""
    stages = config.parallel.pipeline_model_parallel_size
    chunks = config.parallel.num_virtual_stages_per_pipeline_rank
    share = chunk_layers(config)
    starts = [(chunk * stages + stage) * share for chunk in range(chunks)]
    return tuple(start + number for start in starts for number in range(1, share + 1))
