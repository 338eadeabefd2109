"""Which implementation of the layers a run takes, why, and what it refuses, on machines that are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from megatron_fwpkm.config import ImplementationConfig, PretrainConfig
from megatron_fwpkm.config.implementation_rules import implementation_problems
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.libraries.choices import (
    attention_of_layers,
    check_choices,
    choose_attention,
    choose_layers,
    choose_libraries,
    choose_rope,
)
from megatron_fwpkm.libraries.probes import Environment, Finding, fused_libraries
from tests.libraries.pretended import findings

HERE = findings("transformer_engine")
NO_GPU = findings("transformer_engine", cuda=False)


def config_of(words: str = "") -> PretrainConfig:
    return parse_pretrain(["--num-layers", "4", *words.split()]).config


@pytest.mark.parametrize(
    ("words", "found", "name", "why"),
    [
        ("", HERE, "transformer_engine", "--transformer-impl auto"),
        ("--transformer-impl transformer_engine", HERE, "transformer_engine", "--transformer-impl transformer_engine"),
        ("--transformer-impl local", HERE, "local", "--transformer-impl local"),
        ("", findings(), "local", "Transformer Engine is not installed"),
        ("", NO_GPU, "local", "Transformer Engine needs CUDA, which is not available"),
        (
            "",
            HERE | {"transformer_engine": Finding("transformer_engine", "broken", "2.11", "RuntimeError: no library")},
            "local",
            "Transformer Engine is installed but does not work (RuntimeError: no library)",
        ),
        (
            "",
            HERE | {"transformer_engine": Finding("transformer_engine", "other version", "1.9", "it needs 2.9")},
            "local",
            "Transformer Engine 1.9 is installed, but it needs 2.9",
        ),
    ],
)
def test_layers(words: str, found: dict[str, Finding], name: str, why: str) -> None:
    choice = choose_layers(config_of(words), found)
    assert (choice.name, choice.why, choice.refusal) == (name, why, None)


@pytest.mark.parametrize(
    ("words", "asking"),
    [
        ("--transformer-impl transformer_engine", "--transformer-impl transformer_engine"),
        ("--attention-backend te", "--attention-backend te"),
        ("--rope-fusion", "--rope-fusion"),
        ("--bf16 --fp8-format e4m3 --rope-fusion", "--fp8-format e4m3 and --rope-fusion"),
    ],
)
def test_what_is_asked_for_and_not_to_be_had_is_refused(words: str, asking: str) -> None:
    choices = choose_libraries(config_of(words), findings())
    message = f"^{asking}: Transformer Engine is not installed; install .* or remove the flag$"
    with pytest.raises(ValueError, match=message):
        check_choices(choices)


def test_a_recipe_that_the_gpu_does_not_have_is_refused() -> None:
    found = HERE | {"FP8 mxfp8": Finding("FP8 mxfp8", "absent", note="Device compute capability 10.0 required")}
    choices = choose_libraries(config_of("--bf16 --fp8-format e4m3 --fp8-recipe mxfp8"), found)
    with pytest.raises(ValueError, match=r"^--fp8-format e4m3: .* --fp8-recipe mxfp8 here \(Device .* required\)"):
        check_choices(choices)
    check_choices(choose_libraries(config_of("--bf16 --fp8-format e4m3"), found))


def test_transformer_engine_is_asked_which_recipes_it_computes() -> None:
    manager = SimpleNamespace(
        is_fp8_available=lambda: (True, ""), is_fp8_block_scaling_available=lambda: (False, "CUDA is too old.")
    )
    device = SimpleNamespace(name="GPU", total_memory=2**30, major=9, minor=0)
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, get_device_properties=lambda index: device
    )
    modules: dict[str, Any] = {
        "torch": SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda="13.0"), cuda=cuda),
        "transformer_engine": SimpleNamespace(__version__="2.11.0"),
        "transformer_engine.pytorch": SimpleNamespace(),
        "transformer_engine.pytorch.fp8": SimpleNamespace(FP8GlobalStateManager=manager),
    }

    def import_module(name: str) -> Any:
        if name not in modules:
            raise ModuleNotFoundError(name, name=name)
        return modules[name]

    found = fused_libraries(
        Environment(import_module=import_module, is_there=modules.__contains__, hide=lambda name: None)
    )
    said = {name: (one.status, one.note) for name, one in found.items() if name.startswith("FP8")}
    assert said["FP8 delayed"] == said["FP8 tensorwise"] == ("ok", "")
    assert said["FP8 blockwise"] == ("absent", "CUDA is too old")
    assert said["FP8 mxfp8"][0] == "absent" and "AttributeError" in said["FP8 mxfp8"][1]


@pytest.mark.parametrize(
    ("words", "found", "by_layer", "why"),
    [
        ("--bf16", HERE, "te te te te", "--attention-backend auto"),
        ("--bf16 --layer-pattern swa:5,fa", HERE, "local te local te", "in 2 of 4 layers"),
        ("--bf16 --layer-pattern swa:5", HERE, "local local local local", "all of it has sliding windows"),
        ("--bf16 --layer-pattern gdn,fa", HERE, "- te - te", "--attention-backend auto"),
        ("--bf16 --layer-pattern gdn,swa:5", HERE, "- local - local", "all of it has sliding windows"),
        ("--bf16 --layer-pattern gdn,gdn,swa:5,fa", HERE, "- - local te", "in 1 of 4 layers, torch SDPA in 1 "),
        ("--bf16 --layer-pattern gdn", HERE, "- - - -", "no layer has it"),
        ("--bf16 --layer-pattern gdn --attention-backend te", HERE, "- - - -", "no layer has it"),
        ("--attention-backend te --layer-pattern swa:5", HERE, "te te te te", "--attention-backend te"),
        ("", HERE, "local local local local", "no --bf16"),
        ("--bf16 --attention-backend local", HERE, "local local local local", "--attention-backend local"),
        ("--bf16", findings(), "local local local local", "as the layers"),
    ],
)
def test_attention(words: str, found: dict[str, Finding], by_layer: str, why: str) -> None:
    config = config_of(words)
    assert " ".join(name or "-" for name in attention_of_layers(config, found)) == by_layer
    choice = choose_attention(config, found)
    assert why in choice.why and choice.name == ("te" if "te" in by_layer.split() else "local")


def test_what_attention_cannot_do_does_not_matter_without_attention() -> None:
    words = "--bf16 --attention-backend te --transformer-impl transformer_engine --reset-attention-mask --layer-pattern"
    refused = [list(implementation_problems(config_of(f"{words} {pattern}"))) for pattern in ("gdn,fa", "gdn")]
    assert len(refused[0]) == 1 and "cannot keep documents apart" in refused[0][0] and refused[1] == []


@pytest.mark.parametrize(
    ("words", "found", "name", "why"),
    [
        ("", HERE, "on", "as the layers"),
        ("--rope-fusion", HERE, "on", "--rope-fusion"),
        ("--no-rope-fusion", HERE, "off", "--no-rope-fusion"),
        ("--reset-position-ids", HERE, "off", "positions of its own"),
        ("", findings(), "off", "as the layers"),
    ],
)
def test_rope(words: str, found: dict[str, Finding], name: str, why: str) -> None:
    choice = choose_rope(config_of(words), found)
    assert choice.name == name and why in choice.why


def test_the_defaults_leave_it_open() -> None:
    assert ImplementationConfig() == config_of().implementation
    assert config_of().implementation.transformer_impl == "auto"
