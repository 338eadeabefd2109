"""Sizes that nothing can hold are refused at once, whatever the option."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from megatron_fwpkm.config.arguments import Option
from megatron_fwpkm.config.loading import option_groups, parse_pretrain
from megatron_fwpkm.config.neighbours import near_divisors
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.training.dry_run import dry_run
from tests.quick_cases import examples, product_cases

KINDS = ("integer", "LEFT,RIGHT")
NUMBERS = [option for _, _, found in option_groups() for option in found if option.kind in KINDS]
SINGLE = [option.flag for option in NUMBERS if option.kind == "integer" and not option.is_list]
START = ["--dry-run", "--tokenizer-type", "NullTokenizer", "--vocab-size", "1000", "--fwpkm-layer-numbers", "1"]


def outcome(flags: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, float]:
    """What is said of a configuration (nothing where it is fine), and the seconds it took."""
    begin = time.process_time()
    try:
        dry_run(parse_pretrain([*START, *flags]))
        said = ""
    except ValueError as error:
        said = str(error)
    capsys.readouterr()
    return said, time.process_time() - begin


@pytest.mark.parametrize("flag", product_cases(SINGLE, quick=SINGLE[::4].__contains__))
def test_a_huge_number_is_refused_by_its_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    said, seconds = outcome([flag, str(10**20)], capsys)
    assert re.search(rf"{flag} {10**20} must be (at most|between)", said), said
    assert seconds < 60


@pytest.mark.parametrize(
    "option", product_cases(NUMBERS, quick=NUMBERS[::4].__contains__), ids=lambda option: option.flag
)
def test_numbers_that_no_float_holds_are_usage_errors(option: Option, capsys: pytest.CaptureFixture[str]) -> None:
    """Hundreds of digits ended in an OverflowError, thousands in a page of them."""
    for digits in (400, 5000):
        with pytest.raises(SystemExit, match="2"):
            parse_pretrain([*START, option.flag, "1" * digits + (",0" if option.kind == "LEFT,RIGHT" else "")])
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.endswith(
            f"error: {option.flag} 111111111... has {digits} digits, which is too large for any option"
        )


def test_lists_are_looked_at_once_and_told_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    every = [str(number) for number in range(1, 10_001)]
    said, _ = outcome(["--num-layers", "12", "--fwpkm-layer-numbers", *every], capsys)
    assert said.startswith("--fwpkm-layer-numbers 13 14 15 16 17 18 19 20 21 22 and 9,978 more must be between 1 and")
    said, _ = outcome(["--num-layers", "12", "--fwpkm-layer-numbers", "1", "2", "1", "3", "3"], capsys)
    assert said == "--fwpkm-layer-numbers contains 1 3 more than once, but a layer has at most one memory"
    sizes = ["--num-layers", "10000", "--fwpkm-num-subkeys", "16", "--fwpkm-value-dim", "16"]
    said, seconds = outcome([*sizes, "--fwpkm-layer-numbers", *every], capsys)
    assert said == "" and seconds < 30


def test_windows_have_a_bound() -> None:
    sliding = [*START, "--layer-pattern", "swa", "--window-size"]
    assert problems(parse_pretrain([*sliding, f"{2**31},0"]).config) == [
        f"--window-size {2**31},0 must be at most {2**31 - 1},0; layers with full attention are fa in --layer-pattern"
    ]
    assert problems(parse_pretrain([*sliding, f"{2**31 - 1},0"]).config) == []


@examples(12, 60, HealthCheck.function_scoped_fixture)
@given(st.dictionaries(st.sampled_from(SINGLE), st.integers(0, 70).map(lambda power: 2**power), max_size=4))
def test_any_sizes_are_answered_soon(capsys: pytest.CaptureFixture[str], sizes: dict[str, int]) -> None:
    """A plan or one sentence for each problem, never another error."""
    said, seconds = outcome([word for flag, size in sizes.items() for word in (flag, str(size))], capsys)
    assert seconds < 60, sizes
    assert not said or "--" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fwpkm-num-subkeys", "1000000"],
         "--fwpkm-num-subkeys 1000000 and --fwpkm-value-dim 512 make a memory of 1,862.6 TiB on each rank, more "
         "than the 1.0 TiB of any device"),
        (["--hidden-size", "1048576", "--num-attention-heads", "8192", "--num-layers", "10000"],
         "--num-layers 10000 and --hidden-size 1048576 make 480,0"),
        (["--fwpkm-num-heads", "1048576", "--num-layers", "1", "--hidden-size", "24"],
         "--fwpkm-num-heads 1048576 and --fwpkm-key-dim 512 make a memory of 1.0 TiB on each rank, more than"),
        (["--micro-batch-size", "1000000000"],
         "--micro-batch-size 1000000000 and --seq-length 4096 need 4,192,352.3 TiB on a rank for activations "
         "and undo log, more than the limit of 16.0 TiB: reduce them"),
        (["--seq-length", str(2**24)],
         f"--micro-batch-size 1 and --seq-length {2**24} need 17.5 TiB on a rank for activations"),
    ],
)  # fmt: skip
def test_what_no_device_holds_is_said_with_its_bytes(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, seconds = outcome(flags, capsys)
    assert found.startswith(said)
    assert seconds < 30


def test_tables_that_many_ranks_share_are_taken() -> None:
    """The paper's are far below the limit, and a shared one counts per rank."""
    shared = ["--fwpkm-num-subkeys", "32768", "--tensor-model-parallel-size", "4"]
    sizes = ["--fwpkm-value-dim", "512", "--num-attention-heads", "16", "--hidden-size", "1024"]
    assert problems(parse_pretrain([*START, *sizes, *shared]).config) == []
    assert len(problems(parse_pretrain([*START, *sizes, *shared[:2]]).config)) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--num-layers", "10000"],
        pytest.param(["--num-layers", "9216", "--pipeline-model-parallel-size", "1024"], marks=pytest.mark.slow),
        pytest.param(["--seq-length", str(2**22), "--fwpkm-chunk-size", "2"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_the_longest_plans_are_short(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said, seconds = outcome(flags, capsys)
    assert said == "" and seconds < 120, (flags, said, seconds)


def test_of_many_stages_the_plan_shows_three(capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(parse_pretrain([*START, "--num-layers", "16", "--pipeline-model-parallel-size", "16"]))
    shown = capsys.readouterr().out
    assert "stage 0" in shown and "stage 15" in shown and "stage 7" not in shown


def test_near_divisors_are_found_quickly() -> None:
    begin = time.process_time()
    assert near_divisors(5, 2**24) == "4 or 8"
    assert near_divisors(7, 12) == "6 or 12"
    assert near_divisors(12, 36) == "9 or 18"
    assert near_divisors(2, 10**12 + 39) == f"1 or {10**12 + 39}"
    assert time.process_time() - begin < 1
