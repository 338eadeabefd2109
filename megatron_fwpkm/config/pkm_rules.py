"""Rules of the static product key memory, checked at start-up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .pretrain import PretrainConfig


def pkm_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for every violated rule."""
    pkm, layers = config.pkm, config.model.num_layers
    wrong = [number for number in pkm.layer_numbers if not 1 <= number <= layers]
    if wrong:
        hint = " (the paper counts from 0: add 1)" if 0 in wrong else ""
        yield f"--pkm-layer-numbers {_words(wrong)} must be between 1 and {layers} (--num-layers){hint}"
    twice = sorted(number for number, times in Counter(pkm.layer_numbers).items() if times > 1)
    if twice:
        yield f"--pkm-layer-numbers contains {_words(twice)} more than once, but a layer has one MLP to replace"
    if not pkm.layer_numbers:
        return
    if pkm.topk > pkm.num_subkeys:
        yield (
            f"--pkm-topk {pkm.topk} exceeds the {pkm.num_subkeys} sub-keys of a half (--pkm-num-subkeys): use at most "
            f"{pkm.num_subkeys}"
        )
    if pkm.key_dim % 2:
        yield (
            f"--pkm-key-dim {pkm.key_dim} must be even, because a query is split into halves; use "
            f"{pkm.key_dim - 1} or {pkm.key_dim + 1}"
        )


def _words(numbers: list[int]) -> str:
    """`1 2 3`, and of many only the first."""
    shown = " ".join(map(str, numbers[:10]))
    return f"{shown} (and {len(numbers) - 10} more)" if len(numbers) > 10 else shown
