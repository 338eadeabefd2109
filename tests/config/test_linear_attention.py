"""The gated delta net before anything runs: rules, numbers, and what they say."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_fwpkm.config.layer_kind import LAYER_KINDS
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.validation import problems


def of(*words: str, pattern: str = "gdn*3,fa") -> Any:
    return parse_pretrain(["--num-layers", "4", "--layer-pattern", pattern, *words]).config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--linear-num-value-heads 24",
         "--linear-num-value-heads 24 is not divisible by --linear-num-key-heads 16: use 16 or 32"),
        ("--context-parallel-size 2 --linear-num-key-heads 1",
         "--linear-num-key-heads 1 is not divisible by --tensor-model-parallel-size 1 times --context-parallel-size 2, "
         "between whose ranks the heads are divided: use 2"),
        ("--tensor-model-parallel-size 2 --linear-num-key-heads 1 --linear-num-value-heads 2",
         "--tensor-model-parallel-size 2 does not divide --linear-num-key-heads 1 (near: 2): use a tensor-parallel "
         "size of 1, which divides everything, or change the sizes"),
        ("--fp8-format hybrid --bf16 --linear-num-key-heads 2 --linear-num-value-heads 2",
         "--fp8-recipe delayed needs multiples of 16, and on a rank the width of all queries, keys, values, gates, "
         "decays and strengths is 1028: use 1024 or 1040"),
    ],
)  # fmt: skip
def test_what_is_refused(words: str, message: str) -> None:
    assert message in problems(of(*words.split()))
    assert message not in problems(of(*words.split(), pattern="fa")), "without such layers its options are of no matter"


def test_a_value_out_of_its_range_is_refused_everywhere() -> None:
    said = "--linear-conv-kernel-dim 1 must be at least 2"
    assert said in problems(of("--linear-conv-kernel-dim", "1", pattern="fa"))


def test_the_numbers_of_a_layer() -> None:
    config = of(*"--hidden-size 768 --linear-num-key-heads 4 --linear-num-value-heads 4".split())
    kind = LAYER_KINDS["gdn"]
    count = kind.parameters(config)
    width = 4 * 128
    assert count.sharded == 768 * (5 * width + 8) + 3 * width * 4 + 8 and count.replicated == 128
    assert kind.flops is not None
    assert kind.flops(config, 1) == 2 * (768 * (5 * width + 8) + 3 * width * 4 + 3 * width * 128)
    assert kind.reach(config, 1) == "all tokens before, in a state of 4 heads x 128 x 128"
    assert kind.summary(config, [1, 2, 3]).startswith("In 3 of 4 layers a gated delta net")
