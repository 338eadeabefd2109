"""Flags of Megatron-LM's preprocessing: each works, or is answered with what to do instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_fwpkm.config.command_line_errors import tool_advice
from megatron_fwpkm.data.preprocess.preprocess_flags import MEGATRON_PREPROCESS_FLAGS
from tests.tools.in_process import run_tool
from tools.preprocess_data import build_parser

THEIRS = (Path(__file__).parent / "megatron_preprocess_flags.txt").read_text().splitlines()[1:]


def our_flags() -> list[str]:
    return list(build_parser()._option_string_actions)


def test_every_flag_of_megatron_works_or_has_advice() -> None:
    ours = our_flags()
    assert len(THEIRS) > 30
    for flag in THEIRS:
        answer = tool_advice(flag.removeprefix("--").replace("_", "-"), ours, MEGATRON_PREPROCESS_FLAGS)
        assert flag in ours or answer.startswith(": "), flag


def test_advice_names_flags_that_exist() -> None:
    texts = MEGATRON_PREPROCESS_FLAGS.values()
    named = {flag for text in texts for flag in re.findall(r"--[a-z][a-z0-9-]*", text)}
    assert named and named <= set(our_flags())
    assert not {f"--{name}" for name in MEGATRON_PREPROCESS_FLAGS} & set(our_flags())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split-sentences"], "unknown flag --split-sentences: texts are not split into sentences"),
        (["--null-tokenizer-pad-id", "-1"], "unknown flag --null-tokenizer-pad-id: NullTokenizer"),
        (["--worker", "2"], "unknown flag --worker; did you mean --workers?"),
        (["--partitions", "4", "--merge-file", "m.txt"], "2 invalid arguments:\n  - unknown flag --partitions: run"),
        (["b.jsonl"], "unexpected argument 'b.jsonl': every option is a flag"),
    ],
)
def test_the_tool_says_it(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    done = run_tool(capsys, "preprocess_data", "--input", "a.jsonl", "--output-prefix", "out", *words)
    assert done.returncode == 2
    assert said in done.stderr and "unknown flag -1" not in done.stderr
