"""A mismatched checkpoint is refused with every offending flag and both values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_fwpkm.checkpoint.compatibility import check_resumable, differences, flag_name
from megatron_fwpkm.config import PretrainConfig

BASE = PretrainConfig()


def change(group: str, **values: object) -> PretrainConfig:
    return replace(BASE, **{group: replace(getattr(BASE, group), **values)})  # type: ignore[arg-type]


def test_equal_configurations_have_no_differences() -> None:
    assert differences(BASE, PretrainConfig()) == []


def test_architecture_is_refused_even_for_finetuning() -> None:
    other = replace(change("model", num_layers=6), fwpkm=replace(BASE.fwpkm, layer_numbers=(2,)))
    for finetune in (False, True):
        with pytest.raises(
            ValueError,
            match=r"cannot continue from run: --num-layers is 12 in the checkpoint and 6 in this run; "
            r"--fwpkm-layer-numbers is none in the checkpoint and 2 in this run; use the saved values$",
        ):
            check_resumable(BASE, other, "run", finetune=finetune)


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("training", {"seed": 5}, "--seed is 1234 in the checkpoint and 5 in this run"),
        ("needle", {"fraction": 0.5}, "--needle-fraction is 0.0 in the checkpoint and 0.5 in this run"),
        ("model", {"seq_length": 128}, "--seq-length is 4096 in the checkpoint and 128 in this run"),
        ("model", {"init_method_std": 0.01}, "--init-method-std is 0.02 in the checkpoint and 0.01 in this run"),
        ("fwpkm", {"gate_bias_init": -1.0}, "--fwpkm-gate-bias-init is 0.0 in the checkpoint and -1.0 in this run"),
        ("optimizer", {"decoupled_lr": 0.1}, "--decoupled-lr is none in the checkpoint and 0.1 in this run"),
        (
            "parallel",
            {"use_distributed_optimizer": True},
            "--use-distributed-optimizer is false in the checkpoint and true in this run",
        ),
    ],
)
def test_another_run_may_only_start_from_the_weights(group: str, values: dict[str, object], message: str) -> None:
    other = change(group, **values)
    with pytest.raises(
        ValueError, match=message + ".*or start a new run from the checkpoint's weights with --load run --finetune"
    ):
        check_resumable(BASE, other, "run", finetune=False)
    assert check_resumable(BASE, other, "run", finetune=True) == []


@pytest.mark.parametrize(("reset", "layers", "seed", "said"), [
    ("step", (2,), 5, True), ("document", (2,), 5, True), ("never", (2,), 5, False), ("step", (), 5, False),
    ("step", (2,), 1234, False),
])  # fmt: skip
def test_weights_that_meet_another_initial_memory_are_announced(
    reset: str, layers: tuple[int, ...], seed: int, said: bool
) -> None:
    saved = change("fwpkm", layer_numbers=layers)
    given = replace(change("fwpkm", layer_numbers=layers, reset=reset), training=replace(BASE.training, seed=seed))
    expected = (
        f"--seed is 1234 in the checkpoint and 5 in this run: --fwpkm-reset {reset} restores the initial memory of "
        "seed 5, but the weights were trained with that of seed 1234; use --seed 1234 to keep it"
    )
    assert check_resumable(saved, given, "run", finetune=True) == ([expected] if said else [])


def test_values_are_spelt_as_they_are_typed() -> None:
    one, other = (change("model", layer_pattern="swa", window_size=(left, 0)) for left in (3, 7))
    with pytest.raises(ValueError, match="--window-size is 3,0 in the checkpoint and 7,0 in this run"):
        check_resumable(one, other, "run", finetune=True)


@pytest.mark.parametrize(
    ("saved", "given"),
    [
        ({"layer_pattern": "fa"}, {"layer_pattern": "fa,fa"}),
        ({"layer_pattern": "gdn*2,gdn,swa:7"}, {"layer_pattern": "gdn*3,swa", "window_size": (7, 0)}),
    ],
)
def test_layers_are_compared_and_not_how_they_are_spelled(saved: dict[str, Any], given: dict[str, Any]) -> None:
    one, other = change("model", **saved), change("model", **given)
    for finetune in (False, True):
        assert check_resumable(one, other, "run", finetune=finetune) == []
        assert check_resumable(other, one, "run", finetune=finetune) == []


def test_numbers_of_layers_are_the_same_in_any_order() -> None:
    assert differences(change("pkm", layer_numbers=(2, 3)), change("pkm", layer_numbers=(3, 2))) == []
    assert len(differences(change("pkm", layer_numbers=(2, 3)), change("pkm", layer_numbers=(3, 4)))) == 1


@pytest.mark.parametrize(
    ("saved", "given", "message"),
    [
        ({"layer_pattern": "fa,swa:7"}, {"layer_pattern": "fa,swa:8"}, "--layer-pattern is fa,swa:7 .* and fa,swa:8"),
        ({"layer_pattern": "fa,swa:7"}, {"layer_pattern": "swa:7,fa"}, "--layer-pattern is fa,swa:7 .* and swa:7,fa"),
        ({"layer_pattern": "fa", "num_layers": 4}, {"layer_pattern": "fa,fa", "num_layers": 8}, "--num-layers is 4"),
    ],
)
def test_other_layers_are_refused(saved: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_resumable(change("model", **saved), change("model", **given), "run", finetune=True)


def test_a_window_of_training_is_compared() -> None:
    narrowed = [
        replace(change("model", window_size=(left, 0)), fwpkm=replace(BASE.fwpkm, pswa_probability=0.5))
        for left in (3, 7)
    ]
    assert [found.flag for found in differences(*narrowed)] == ["--window-size"]


def test_what_may_change_is_said_and_logging_is_nobodys_business() -> None:
    assert check_resumable(BASE, change("optimizer", lr=3e-4), "run", finetune=False) == [
        "changed: --lr is 0.001 in the checkpoint and 0.0003 in this run"
    ]
    assert check_resumable(BASE, change("logging", log_interval=1), "run", finetune=False) == []
    assert check_resumable(BASE, change("checkpoint", resume=True), "run", finetune=False) == []


def test_flags_are_spelt_with_the_prefix_of_their_group() -> None:
    assert flag_name("fwpkm", "num_subkeys") == "--fwpkm-num-subkeys"
