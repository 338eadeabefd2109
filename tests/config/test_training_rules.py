"""Rules between the options of the loop: both flags are named."""

from __future__ import annotations

import pytest

from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.validation import problems

ALONE = ["--dry-run"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--grad-reduce-in-bf16"], ["--grad-reduce-in-bf16", "--bf16"]),
        (["--manual-gc-interval", "5"], ["--manual-gc-interval 5", "--manual-gc"]),
        (["--no-manual-gc-eval"], ["--no-manual-gc-eval", "--manual-gc"]),
    ],
)
def test_an_option_that_needs_another_names_it(flags: list[str], named: list[str]) -> None:
    found = problems(parse_pretrain([*ALONE, *flags]).config)
    assert len(found) == 1 and all(flag in found[0] for flag in named)


@pytest.mark.parametrize(
    "flags",
    [
        ["--grad-reduce-in-bf16", "--bf16"],
        ["--manual-gc", "--manual-gc-interval", "5", "--no-manual-gc-eval"],
        ["--calculate-per-token-loss"],
    ],
)
def test_and_is_fine_with_it(flags: list[str]) -> None:
    assert problems(parse_pretrain([*ALONE, *flags]).config) == []
