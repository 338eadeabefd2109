"""Which libraries a run takes, why, and what is refused: from what is installed and what is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.libraries.choices import (
    check_choices,
    choose_adam,
    choose_delta_rule,
    choose_gradient_fusion,
    choose_libraries,
    describe,
)
from megatron_fwpkm.libraries.probes import FLASH_LINEAR_ATTENTION, GRADIENT_KERNEL, Finding
from tests.libraries.pretended import findings

BOTH = ("transformer_engine", "apex")


def configured(*words: str) -> PretrainConfig:
    return parse_pretrain(["--num-layers", "2", *words]).config


def broken(name: str, status: Any = "broken", note: str = "RuntimeError: half installed") -> dict[str, Finding]:
    return findings() | {name: Finding(name, status, "1.0", note)}


@pytest.mark.parametrize(
    ("found", "wanted", "name", "why"),
    [
        (findings(), "auto", "torch", "neither Transformer Engine nor Apex is installed"),
        (findings(*BOTH), "auto", "transformer_engine", "--adam-implementation auto: the first choice"),
        (findings("apex"), "auto", "apex", "Transformer Engine is not installed"),
        (findings(*BOTH), "apex", "apex", "--adam-implementation apex"),
        (findings(*BOTH), "torch", "torch", "--adam-implementation torch"),
        (findings("apex", cuda=False), "auto", "torch",
         "Transformer Engine is not installed; NVIDIA's Apex needs CUDA, which is not available"),
        (broken("apex", "foreign"), "auto", "torch",
         "Transformer Engine is not installed; the package apex is not NVIDIA's"),
        (broken("transformer_engine"), "auto", "torch",
         "Transformer Engine is installed but does not work (RuntimeError: half installed); "
         "NVIDIA's Apex is not installed"),
    ],
)  # fmt: skip
def test_which_adam(found: dict[str, Finding], wanted: str, name: str, why: str) -> None:
    choice = choose_adam(configured("--adam-implementation", wanted), found)
    assert (choice.name, choice.why, choice.refusal) == (name, why, None)


@pytest.mark.parametrize(
    ("found", "wanted", "name", "why"),
    [
        (findings(), "auto", "off", f"{GRADIENT_KERNEL} is not installed"),
        (findings(GRADIENT_KERNEL), "auto", "on", "--gradient-accumulation-fusion auto: Apex's kernel is here"),
        (findings(GRADIENT_KERNEL), "on", "on", "--gradient-accumulation-fusion on: Apex's kernel is here"),
        (findings(GRADIENT_KERNEL), "off", "off", "--gradient-accumulation-fusion off"),
        (findings(GRADIENT_KERNEL, cuda=False), "auto", "off",
         f"{GRADIENT_KERNEL} needs CUDA, which is not available"),
        (broken(GRADIENT_KERNEL, note="ImportError: libc10.so"), "auto", "off",
         f"{GRADIENT_KERNEL} is installed but does not work (ImportError: libc10.so)"),
    ],
)  # fmt: skip
def test_gradient_fusion(found: dict[str, Finding], wanted: str, name: str, why: str) -> None:
    choice = choose_gradient_fusion(configured("--gradient-accumulation-fusion", wanted), found)
    assert (choice.name, choice.why, choice.refusal) == (name, why, None)


@pytest.mark.parametrize(
    ("pattern", "found", "wanted", "name", "why"),
    [
        ("gdn,fa", findings(), "auto", "torch", "flash-linear-attention is not installed"),
        ("gdn,fa", findings(FLASH_LINEAR_ATTENTION), "auto", "fla", "--linear-attention-backend auto"),
        ("gdn,fa", findings(FLASH_LINEAR_ATTENTION), "torch", "torch", "--linear-attention-backend torch"),
        ("fa", findings(FLASH_LINEAR_ATTENTION), "auto", "torch", "no layer has it"),
        ("gdn,fa", findings(FLASH_LINEAR_ATTENTION, cuda=False), "auto", "torch",
         "flash-linear-attention needs CUDA, which is not available"),
        ("gdn,fa", broken(FLASH_LINEAR_ATTENTION), "auto", "torch",
         "flash-linear-attention is installed but does not work (RuntimeError: half installed)"),
    ],
)  # fmt: skip
def test_which_delta_rule(pattern: str, found: dict[str, Finding], wanted: str, name: str, why: str) -> None:
    config = configured("--layer-pattern", pattern, "--linear-attention-backend", wanted)
    choice = choose_delta_rule(config, found)
    assert (choice.name, choice.why, choice.refusal) == (name, why, None)
    shown = [one.part for one in choose_libraries(config, found)]
    assert ("linear attention" in shown) == (pattern != "fa")


@pytest.mark.parametrize(
    ("words", "found", "message"),
    [
        ("--gradient-accumulation-fusion on", findings(),
         f"--gradient-accumulation-fusion on: {GRADIENT_KERNEL} is not installed; build Apex from source with "
         "APEX_CPP_EXT=1 APEX_CUDA_EXT=1, or use NVIDIA's PyTorch image, or use auto$"),
        ("--layer-pattern gdn --linear-attention-backend fla", findings(),
         "--linear-attention-backend fla: flash-linear-attention is not installed; pip install"),
        ("--adam-implementation apex", findings("transformer_engine"),
         "--adam-implementation apex: NVIDIA's Apex is not installed; build it from source"),
        ("--adam-implementation apex", broken("apex", "foreign"),
         "--adam-implementation apex: the package apex is not NVIDIA's; build it from source"),
        ("--adam-implementation transformer_engine", findings(*BOTH, cuda=False),
         "--adam-implementation transformer_engine: Transformer Engine needs CUDA, which is not available; install"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused(words: str, found: dict[str, Finding], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_choices(choose_libraries(configured(*words.split()), found))
    check_choices(choose_libraries(configured(), found))


def test_a_line_for_each_choice_in_columns() -> None:
    lines = describe(choose_libraries(configured(), findings()))
    assert [line.split("  ")[0].strip() for line in lines][:3] == ["engine", "layers", "core attention"]
    assert "optimizer       torch AdamW                    neither Transformer Engine nor Apex is installed" in lines
