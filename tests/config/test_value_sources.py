"""What origins tell: the file of a refused value, options of a memory that is not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.value_sources import check_memory_options, sources_of_named_values


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("vocab-size: 32000\nseed: 3\nfwpkm-topk: 4\nfwpkm-layer-numbers: [2, 3]\nlr: 1e-2\n")
    return "run.yaml"


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        ("--vocab-size 32000 differs from the 4000 pieces",
         ["--vocab-size 32000 is set in run.yaml:1; `--vocab-size none` on the command line unsets it"]),
        ("rank 1 of 2: --seed 3: too low",
         ["--seed 3 is set in run.yaml:2; the command line takes precedence over a file"]),
        ("--fwpkm-topk 4, and --lr 0.01.",
         ["--fwpkm-topk 4 is set in run.yaml:3; the command line takes precedence over a file",
          "--lr 0.01 is set in run.yaml:5; the command line takes precedence over a file"]),
        ("--seed 30, --lr 0.015, --lr, --vocab-size 32000-1", []),  # other values, or none: advice
        ("--num-layers 12", []),  # a default
        ("--hidden-size 64", []),  # from the command line
    ],
)  # fmt: skip
def test_a_refused_value_of_a_file_is_told_with_its_line(file: str, message: str, lines: list[str]) -> None:
    assert sources_of_named_values(message, parse_pretrain(["--config", file, "--hidden-size", "64"])) == lines


def test_a_list_of_a_file_can_be_emptied(file: str) -> None:
    (line,) = sources_of_named_values("--fwpkm-layer-numbers 2 3: none", parse_pretrain(["--config", file]))
    assert line.endswith("run.yaml:4; `--fwpkm-layer-numbers none` on the command line unsets it")


def test_options_of_a_memory_need_one() -> None:
    with pytest.raises(
        ValueError, match="--fwpkm-topk --fwpkm-reset: the model has no memory.*--fwpkm-layer-numbers none"
    ):
        check_memory_options(parse_pretrain(["--fwpkm-reset", "document", "--fwpkm-topk", "4"]))


@pytest.mark.parametrize(
    "words", ["", "--lr 1", "--fwpkm-topk 4 --fwpkm-layer-numbers none", "--fwpkm-layer-numbers 2"]
)
def test_a_plain_transformer_may_be_asked_for(words: str) -> None:
    check_memory_options(parse_pretrain(words.split()))


def test_a_file_may_hold_options_of_a_memory_for_runs_that_have_one(file: str) -> None:
    Path("plain.yaml").write_text("fwpkm-topk: 4\n")
    check_memory_options(parse_pretrain(["--config", "plain.yaml"]))
    check_memory_options(parse_pretrain(["--config", file, "--fwpkm-reset", "document"]))


def test_a_refused_value_of_a_checkpoint_is_told_with_its_folder() -> None:
    resolved = parse_pretrain([])
    sources = resolved.value_sources | {"--lr": "checkpoint runs/mine/iter_0000010"}
    assert sources_of_named_values("--min-lr 1 is above --lr 0.001", replace(resolved, value_sources=sources)) == [
        "--lr 0.001 was taken from checkpoint runs/mine/iter_0000010"
    ]
