"""The calls that are counted: the memory operation and a whole memory layer, at the paper's shape, on tensors without
data (benchmarks/counting.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.counting import Counted, OpCalls, counting
from benchmarks.shapes import PAPER, Shape

BATCH = 8
"""Sequences, as in the paper's training."""


@dataclass(frozen=True)
class Subject:
    """What is counted.

    Attributes:
        what: `op`, the memory alone, or `layer`, all that a memory adds to the model.
        implementation: `triton` or `sparse`.
        dtype: `bf16` or `fp32`, of weights and activations; the op itself computes in float32.
        reset: `never`, `step` or `document`; of a layer.
        ranks: tensor-parallel ranks, of which one is counted.
    """

    what: str
    implementation: str
    dtype: str = "fp32"
    reset: str = "never"
    ranks: int = 1

    @property
    def name(self) -> str:
        """Unique, for records."""
        return " ".join([self.what, self.implementation, *self._rest(), f"TP{self.ranks}"])

    @property
    def is_quick(self) -> bool:
        """Whether counting it takes next to no time, or it is the only one of its kind that `make test` counts."""
        if self.implementation == "sparse":
            return False
        return self.reset != "document" or (self.dtype, self.ranks) == ("bf16", 1)

    def _rest(self) -> list[str]:
        return [self.dtype, f"reset={self.reset}"] if self.what == "layer" else []


def subjects(implementations: list[str]) -> list[Subject]:
    """Everything that is counted."""
    ops = [Subject("op", one, ranks=ranks) for one in implementations for ranks in (1, 2)]
    return ops + [
        Subject("layer", one, dtype, reset, ranks)
        for one in implementations
        for dtype in ("bf16", "fp32")
        for reset in ("never", "step", "document")
        for ranks in (1, 2)
    ]


class StandInSharding:
    """Tables of which this process has one of two parts; the other process has the same rows, with the next numbers.

    Implements `megatron_fwpkm.ops.TableSharding` in the launches of `layers/table_sharding.py`, without communication.

    Args:
        count: rows of a list of sub-keys on a process.
    """

    rank, size = 0, 2

    def __init__(self, count: int) -> None:
        self.count = count

    def copy_to_shards(self, x: Tensor) -> Tensor:
        """Itself; in backward a copy that would be summed."""
        return _Copied.apply(x)

    def sum_shards(self, x: Tensor) -> Tensor:
        """A copy that would be summed."""
        return x.detach().clone()

    def gather(self, x: Tensor) -> Tensor:
        """What both have of numbers and costs [2, G, M, kept]."""
        both = torch.stack([x, x])
        if not x.is_meta:
            # A number that comes twice would choose a slot twice, which no memory does, and leave another unwritten.
            both[1, 0] += self.count
        return both


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The tensor itself, as a view."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """A copy of the gradient."""
        return gradients[0].clone()


def paper_shape(chunks: int, batch: int = BATCH) -> Shape:
    """The paper's, with so many chunks to a sequence."""
    return replace(PAPER, batch=batch, tokens=chunks * PAPER.chunk_size)


@contextmanager
def world(ranks: int) -> Iterator[None]:
    """Inside, Megatron's groups of so many tensor-parallel ranks, of which only this process exists."""
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        parallel_state.initialize_model_parallel(ranks, create_gloo_process_groups=False)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def op_call(subject: Subject, shape: Shape, device: str) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A call of the memory, and what its result is differentiated by.

    Tokens come first in memory, as the layer has them.
    """
    from megatron_fwpkm.ops import FastWeightState, fast_weight_memory_

    s, ranks = shape, subject.ranks

    def tokens(*sizes: int) -> Tensor:
        """[B, T, ...], a leaf of autograd."""
        drawn = torch.zeros(s.tokens, s.batch, *sizes, device=device).uniform_()
        return drawn.transpose(0, 1).requires_grad_()

    state = FastWeightState(
        torch.zeros(s.heads, 2, s.num_subkeys // ranks, s.key_dim // 2, device=device).uniform_(),
        torch.zeros(s.num_subkeys**2, s.value_dim // ranks, device=device).uniform_(),
    )
    queries, targets, gates = tokens(s.heads, s.key_dim), tokens(s.value_dim // ranks), tokens()
    sharding = StandInSharding(s.num_subkeys // ranks) if ranks > 1 else None

    def forward() -> Tensor:
        """What it reads."""
        output = fast_weight_memory_(
            queries, targets, gates, state, topk=s.topk, chunk_size=s.chunk_size, implementation=subject.implementation,
            sharding=sharding,
        )  # fmt: skip
        return output.retrieved

    return forward, [queries, targets, gates]


def count_op(subject: Subject, shape: Shape) -> dict[str, Counted]:
    """Forward and backward of one call of the memory."""
    return _count_both(subject, *op_call(subject, shape, "meta"), None)


def _count_both(
    subject: Subject, forward: Callable[[], Tensor], inputs: list[Tensor], op: OpCalls | None
) -> dict[str, Counted]:
    triton = subject.implementation == "triton"
    with counting(triton=triton, op=op) as first:
        output = forward()
    direction = torch.empty_like(output)
    with counting(triton=triton, op=op) as second:
        torch.autograd.grad(output, inputs, direction)
    return {"forward": first, "backward": second}


def layer_config(subject: Subject, shape: Shape) -> Any:
    """The configuration of the paper's 112M model, for a subject."""
    from megatron_fwpkm.config.loading import parse_pretrain

    flags = (
        f"--config examples/paper/base_112m.yaml --seq-length {shape.tokens} --micro-batch-size {shape.batch} "
        f"--global-batch-size {shape.batch} --fwpkm-reset {subject.reset} --fwpkm-num-subkeys {shape.num_subkeys} "
        f"--fwpkm-key-dim {shape.key_dim} --fwpkm-value-dim {shape.value_dim} --fwpkm-chunk-size {shape.chunk_size} "
        f"--fwpkm-implementation {subject.implementation} --tensor-model-parallel-size {subject.ranks} "
        f"--{'' if subject.dtype == 'bf16' else 'no-'}bf16"
    )
    return parse_pretrain(flags.split()).config


def build_layer(subject: Subject, shape: Shape) -> Any:
    """A memory layer whose weights and tables have no data."""
    from megatron_fwpkm.layers.fast_weight_memory import FastWeightMemoryLayer
    from megatron_fwpkm.models.transformer_config import transformer_config

    class WithoutData(FastWeightMemoryLayer):
        """The layer, which draws no tables."""

        def _initial_tables(self) -> tuple[Tensor, Tensor]:
            sizes = self.config.fwpkm
            rows, columns = len(range(sizes.num_subkeys)[self.rows]), len(range(sizes.value_dim)[self.columns])
            sub_keys = torch.empty(sizes.num_heads, 2, rows, sizes.key_dim // 2, device="meta")
            return sub_keys, torch.empty(sizes.num_subkeys**2, columns, device="meta")

    config = layer_config(subject, shape)
    return WithoutData(transformer_config(config), config.fwpkm.layer_numbers[0]).to("meta")


def count_layer(subject: Subject, shape: Shape) -> dict[str, Counted]:
    """Forward, backward, and where a step begins with one the reset, of the second step of a layer."""
    from megatron_fwpkm.layers import fast_weight_memory as room

    found, op = dict[str, Counted](), OpCalls()
    with world(subject.ranks), mock.patch.object(room, "fast_weight_memory_", op.wrap(room.fast_weight_memory_)):
        layer = build_layer(subject, shape)
        dtype = torch.bfloat16 if subject.dtype == "bf16" else torch.float32
        hidden = torch.empty(shape.tokens, shape.batch, layer.config.hidden_size, dtype=dtype, device="meta")
        wanted = [hidden.requires_grad_(), *layer.parameters()]
        for _ in range(2 if subject.reset == "step" else 1):
            if subject.reset == "step":
                with counting(triton=subject.implementation == "triton") as reset:
                    layer.reset()
                found["reset"] = reset
            found |= _count_both(subject, lambda: layer(hidden), wanted, op)
    return found


def count(subject: Subject, shape: Shape) -> dict[str, Counted]:
    """What a subject does, by phase."""
    return (count_op if subject.what == "op" else count_layer)(subject, shape)
