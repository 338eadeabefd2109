"""--layer-pattern: the token mixers and windows of the layers, and what is said of a pattern that is wrong."""

# ruff: noqa: E501 - a table of whole messages is read more easily than one of pieces
from __future__ import annotations

import pytest

from megatron_fwpkm.config import ModelConfig
from megatron_fwpkm.config.layer_pattern import PatternPart, layer_mixers, layer_windows, read_pattern
from megatron_fwpkm.config.validation import problems
from tests.config.test_validation import config_of


def model(pattern: str, layers: int, window_size: tuple[int, int] | None = None) -> ModelConfig:
    return ModelConfig(num_layers=layers, layer_pattern=pattern, window_size=window_size)


def test_a_pattern_is_read_part_by_part() -> None:
    assert read_pattern("gdn*3, swa:7*2,fa") == (
        PatternPart("gdn", None, 3), PatternPart("swa", 7, 2), PatternPart("fa", None, 1)
    )  # fmt: skip


def test_it_is_repeated_to_all_layers() -> None:
    assert layer_mixers(ModelConfig(num_layers=2)) == ("fa", "fa")
    assert layer_mixers(model("swa*2,fa", 6)) == ("swa", "swa", "fa") * 2
    assert layer_mixers(model("fa,swa,fa", 3)) == ("fa", "swa", "fa")


def test_windows_of_the_layers() -> None:
    assert layer_windows(ModelConfig(num_layers=2)) == (None, None)
    assert layer_windows(model("swa", 3, (23, 0))) == (23, 23, 23)
    assert layer_windows(model("swa:0,fa,swa", 6, (7, 0))) == (0, None, 7) * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--layer-pattern ssm,fa", "ssm,fa: ssm is not a token mixer; choose from: fa (full attention), swa (sliding attention)"),
        ("--layer-pattern sva,fa", "sva,fa: sva is not a token mixer; did you mean swa? choose from: fa (full"),
        ("--layer-pattern swiglu", "swiglu is not a token mixer"),
        ("--layer-pattern fa*0", "fa*0: the count of fa*0 must be between 1 and 10,000"),
        ("--layer-pattern fa*10001", "the count of fa*10001 must be between 1 and 10,000"),
        ("--layer-pattern fa*x", "fa*x: 'fa*x' is no part of a pattern: a part is NAME, NAME*COUNT or NAME:WINDOW*COUNT, and commas stand between parts, as in fa*3,swa"),
        ("--layer-pattern 3*fa", "'3*fa' is no part of a pattern"),
        ("--layer-pattern fa,,fa", "'' is no part of a pattern"),
        ("--layer-pattern fa*-1", "'fa*-1' is no part of a pattern"),
        ("--layer-pattern swa:-1", "'swa:-1' is no part of a pattern"),
        ("--layer-pattern fa*2,swa:3", "fa*2,swa:3 describes 3 layers, and repeating it does not give --num-layers 4: use --num-layers 3 or 6, or a pattern of 2 or 4 layers"),
        ("--layer-pattern fa*6", "fa*6 describes 6 layers, and repeating it does not give --num-layers 4: use --num-layers 6, or a pattern of 4 layers"),
        ("--layer-pattern fa:3", "fa:3: fa (full attention) takes no window: remove :3"),
        (f"--layer-pattern swa:{2**31}", f"a window must be at most {2**31 - 1}"),
        ("--layer-pattern fa,swa", "fa,swa has swa, which needs a window: give --window-size LEFT,0, as in 511,0 (a token and the 511 before it)"),
        ("--window-size 7,0", "--window-size 7,0 has no effect, because no part of --layer-pattern fa is swa without a window of its own: use, for example, --layer-pattern swa, or remove --window-size"),
        ("--window-size 7,0 --layer-pattern swa:3", "--window-size 7,0 has no effect, because no part of --layer-pattern swa:3 is swa"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(words: str, message: str) -> None:
    (found,) = problems(config_of(*words.split()))
    assert message in found
