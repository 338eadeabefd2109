"""Rules of memories: where they stand, and which of their options go together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .fwpkm import FwPKMConfig
from .layer_kind import LAYER_KINDS
from .memories import MemoryKind, memory_kinds
from .pretrain import PretrainConfig

_MOST_WORDS = 10


def _tables(fwpkm: FwPKMConfig) -> Iterator[str]:
    if fwpkm.table_dtype == "bf16" and fwpkm.implementation == "reference":
        yield (
            "--fwpkm-table-dtype bf16 is not supported by --fwpkm-implementation reference, which has one dtype: "
            "use auto, sparse or triton, or --fwpkm-table-dtype fp32"
        )


def memory_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for layers that cannot have a memory, and for options of one that do not fit each other."""
    twice: dict[int, list[str]] = {}
    for kind in LAYER_KINDS.values():
        if kind.fast_weights is not None:
            numbers = kind.fast_weights.options(config).layer_numbers
            yield from _memory_layers(config, f"{kind.fast_weights.prefix}layer-numbers", numbers)
            for number in dict.fromkeys(numbers):
                twice.setdefault(number, []).append(f"{kind.fast_weights.prefix}layer-numbers")
    both = {number: flags for number, flags in sorted(twice.items()) if len(flags) > 1}
    if both:
        flags = next(iter(both.values()))
        yield f"{' and '.join(flags)} both contain {_words(list(both))}, but a layer has at most one memory"
    for memory in memory_kinds(config):
        yield from _chunks_and_targets(config, memory)
    yield from _fast_mlp(config)
    if config.fwpkm.layer_numbers:
        yield from _product_keys(config.fwpkm)


def _product_keys(fwpkm: FwPKMConfig) -> Iterator[str]:
    if not fwpkm.gate and not fwpkm.gate_writes:
        yield "--no-fwpkm-gate-writes has no effect with --no-fwpkm-gate, without which nothing is weighed: remove one"
    if fwpkm.topk > fwpkm.num_subkeys:
        yield (
            f"--fwpkm-topk {fwpkm.topk} exceeds the {fwpkm.num_subkeys} sub-keys of a half (--fwpkm-num-subkeys): "
            f"use at most {fwpkm.num_subkeys}"
        )
    if fwpkm.key_dim % 2:
        yield (
            f"--fwpkm-key-dim {fwpkm.key_dim} must be even, because a query is split into halves; use "
            f"{fwpkm.key_dim - 1} or {fwpkm.key_dim + 1}"
        )
    yield from _tables(fwpkm)


def _fast_mlp(config: PretrainConfig) -> Iterator[str]:
    fwmlp = config.fwmlp
    if fwmlp.layer_numbers and fwmlp.gate_writes and not fwmlp.gate:
        yield "--fwmlp-gate-writes requires a gate: remove --no-fwmlp-gate or --fwmlp-gate-writes"


def _memory_layers(config: PretrainConfig, flag: str, numbers: tuple[int, ...]) -> Iterator[str]:
    """Where a kind of memory cannot stand."""
    layers = config.model.num_layers
    wrong = [number for number in numbers if not 1 <= number <= layers]
    if wrong:
        hint = " (the paper counts from 0: add 1)" if 0 in wrong else ""
        yield f"{flag} {_words(wrong)} must be between 1 and {layers} (--num-layers){hint}"
    twice = sorted(number for number, times in Counter(numbers).items() if times > 1)
    if twice:
        yield f"{flag} contains {_words(twice)} more than once, but a layer has at most one memory"


def _chunks_and_targets(config: PretrainConfig, memory: MemoryKind) -> Iterator[str]:
    options, prefix = memory.options, memory.fast.prefix
    if config.fwpkm.dp_sync == "average" and options.reset != "never":
        yield (
            f"--fwpkm-dp-sync average has no effect with {prefix}reset {options.reset}, which discards the "
            "memory: remove one of them"
        )
    if options.owner == "sequence" and options.reset == "never":
        yield (
            f"{prefix}owner sequence ends a memory with its sequence, but {prefix}reset never carries it over to the "
            f"next: use {prefix}reset step or document, or {prefix}owner micro-batch"
        )
    if options.normalize_targets and options.value_dim < 2:
        off = prefix.replace("--", "--no-")
        yield f"{prefix}value-dim 1 cannot be z-scored: use at least 2, or {off}normalize-targets"
    if options.lookahead >= options.chunk_size:
        yield (
            f"{prefix}lookahead {options.lookahead} leaves no tokens to write of {prefix}chunk-size "
            f"{options.chunk_size}: use a lookahead of at most {options.chunk_size - 1} or a longer chunk"
        )


def _words(numbers: list[int]) -> str:
    """`3 7 11`; of many the first few and how many more."""
    shown = " ".join(str(number) for number in numbers[:_MOST_WORDS])
    return shown if len(numbers) <= _MOST_WORDS else f"{shown} and {len(numbers) - _MOST_WORDS:,} more"
