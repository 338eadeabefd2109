"""What is known of a kind of a part of layers before anything runs, and the table of all kinds.

The rows are in `config.kind_rows`. Three more tables follow from the names: `models.kind_specs` (modules for Megatron),
`conversion.weight_rules` (names of weights) and `hf.kind_modules` (modules and caches for Transformers). A kind from
outside the package registers itself in all four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .derived import ShardedCount
from .pretrain import PretrainConfig


def layers_in_words(numbers: Iterable[int]) -> str:
    """`layer 2`, or `layers 2, 4`."""
    words = [str(number) for number in numbers]
    return f"layer{'s' * (len(words) != 1)} {', '.join(words)}"


class Role(Enum):
    """The part of a layer that a kind can be."""

    MEMORY = "memory"
    MIXER = "token mixer"
    MLP = "mlp"


@dataclass(frozen=True)
class TableTraffic:
    """Bytes of fast weights that one token moves in a step, on average over a sequence and over all ranks together."""

    reads: float
    """Out of the tables, once per chunk."""
    writes: float
    """Back into them."""
    undo_log: float
    """Into what is kept for the backward pass, and out of it."""

    @property
    def total(self) -> float:
        """Everything together."""
        return self.reads + self.writes + self.undo_log


def _nothing(config: PretrainConfig) -> dict[str, int]:
    return {}


def _small(config: PretrainConfig) -> int:
    return 0


def _no_problems(config: PretrainConfig) -> Iterable[str]:
    return ()


def _unsaid(config: PretrainConfig, layer_numbers: Sequence[int]) -> str:
    return ""


@dataclass(frozen=True)
class FastWeights:
    """What is known of the fast weights of a kind of memory; `ranks` share one memory between them.

    Attributes:
        options: the group of options of the kind.
        prefix: what its flags begin with.
        elements: numbers of one memory on each of `ranks`.
        bytes: the same in bytes.
        shared: flags and values of what `ranks` must divide.
        made_by: the flags and values that make a memory large, and the reason in brackets.
        kept_bytes: upper bound of what one memory keeps of a micro-batch until its backward pass, beside activations.
        document_bytes: of the same, what a document that starts inside a sequence adds.
        beside_bytes: what one memory has beside its weights for the replicas' number: marks, what a reset needs.
        passing_bytes: what one memory at a time needs in its forward or backward pass.
    """

    options: Callable[[PretrainConfig], Any]
    prefix: str
    elements: Callable[[PretrainConfig, int], int]
    bytes: Callable[[PretrainConfig, int], int]
    shared: Callable[[PretrainConfig], dict[str, int]]
    made_by: Callable[[PretrainConfig], str]
    kept_bytes: Callable[[PretrainConfig], int]
    document_bytes: Callable[[PretrainConfig], int]
    beside_bytes: Callable[[PretrainConfig, int], int]
    passing_bytes: Callable[[PretrainConfig], int]


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
        flops: floating-point operations of one token in the forward pass of a layer (number from 1), on average over a
            sequence, by the convention of `model_flops`; None for a kind from outside the package that only multiplies
            by its slow weights, once each.
        traffic: bytes of fast weights that a token moves; the second argument is the share of the reads of a chunk that
            are the only ones or the first of their slot. None for a kind that has no tables, or counts none.
        problems: violated rules on its own options, in sentences, of a configuration that has such layers.
        divided: flags and values of what is spread over tensor-parallel ranks, which must divide it.
        fp8_widths: inputs and outputs of its linears on one rank, by what they are called: FP8 takes whole blocks.
        libraries: optional packages that can compute it, by the names of `libraries.probes`.
        core_attention: a token mixer in which every token attends to others: --attention-backend says what computes it.
        within_window: a token mixer that sees --window-size tokens before a token, or the window that --layer-pattern
            gives it.
        narrowed_in_training: a token mixer that sees --window-size only in steps that --fwpkm-pswa-probability draws.
        largest_weight: numbers of the largest of its slow weights on one rank, where one may be larger than the rest.
        fast_weights: of a memory, what its inner update moves.
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
    flops: Callable[[PretrainConfig, int], float] | None = None
    traffic: Callable[[PretrainConfig, float], TableTraffic] | None = None
    problems: Callable[[PretrainConfig], Iterable[str]] = _no_problems
    divided: Callable[[PretrainConfig], dict[str, int]] = _nothing
    fp8_widths: Callable[[PretrainConfig], dict[str, int]] = _nothing
    libraries: tuple[str, ...] = ()
    core_attention: bool = False
    within_window: bool = False
    narrowed_in_training: bool = False
    largest_weight: Callable[[PretrainConfig], int] = _small
    fast_weights: FastWeights | None = None
    context_parallel: bool = False
    separates_documents: bool = False


LAYER_KINDS: dict[str, LayerKind] = {}
"""All kinds by name."""


def register_layer_kind(kind: LayerKind) -> None:
    """Add a row to the table; a second one of the same name takes its place."""
    LAYER_KINDS[kind.name] = kind


def weight_bytes(config: PretrainConfig) -> int:
    """Bytes of one slow weight as the forward pass takes it."""
    return 2 if config.training.bf16 else 4
