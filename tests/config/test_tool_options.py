"""A tool's flags are made from its dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import pytest

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.config.cli import tool_parser
from megatron_fwpkm.config.field_metadata import TOKENIZER, AtLeast
from megatron_fwpkm.config.tool_options import Flag, MayBeEmpty, Metavar, NotWith, Only, add_tool_options, parse_tool


@dataclass(frozen=True)
class Sample:
    """One field of every kind."""

    inputs: Annotated[tuple[str, ...], Flag("--input", ("--in",)), Metavar("FILE")]
    """Files."""
    data: Annotated[DataConfig, Only(TOKENIZER)] = field(default_factory=DataConfig)
    """The tokenizer."""
    count: Annotated[int, AtLeast(1)] = 3
    """A count."""
    text: Annotated[str | None, NotWith("text")] = None
    """A text (default: a file)."""
    file: Annotated[str | None, NotWith("text")] = None
    """A file (default: a text)."""
    check: bool = True
    """A switch."""
    parts: Annotated[tuple[str, ...], MayBeEmpty()] = ("all",)
    """Parts."""


def parse(*words: str) -> Sample:
    return parse_tool(add_tool_options(tool_parser("A tool."), Sample), Sample, words, {"foreign": "write --count"})


def test_words_become_the_dataclass() -> None:
    assert parse("--in", "a", "b") == Sample(("a", "b"))
    made = parse("--input", "a", "--count", "5", "--no-check", "--vocab-size", "7")
    assert made == Sample(("a",), DataConfig(vocab_size=7), 5, check=False)


def test_a_list_may_be_empty_where_its_field_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("--input", "a").parts == ("all",)
    assert parse("--input", "a", "--parts").parts == ()
    with pytest.raises(SystemExit, match="2"):
        parse("--input")
    assert "--input needs at least one value" in capsys.readouterr().err


def test_none_is_a_text() -> None:
    """There is no file whose value a tool's flag could unset."""
    made = parse("--input", "none", "--text", "none")
    assert (made.inputs, made.text) == (("none",), "none")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "error: --input is required"),
        (["--input", "a", "--count", "0"], "error: --count 0 must be at least 1"),
        (["--input", "a", "--text", "x", "--file", "y"], "error: --file and --text are mutually exclusive: remove one"),
        (["--input", "a", "--cuont", "2"], "unknown flag --cuont; did you mean --count?"),
        (["--input", "a", "--num-workers", "2"], "unknown flag --num-workers"),
        (["--input-files", "a", "--input", "a"], "unknown flag --input-files; did you mean --input?"),
        (["--input", "a", "--foreign", "2"], "unknown flag --foreign: write --count"),
        (["--input", "a", "--check=no"], "--check=no: a switch takes no value; write --check or --no-check"),
        (["--input", "a", "--cou", "2", "--x"], "2 invalid arguments:\n  - unknown flag --cou"),
        (["--cuont", "2"], "unknown flag --cuont; did you mean --count?\n  - --input is required"),
        (["--count", "0"], "2 invalid arguments:\n  - --count 0 must be at least 1\n  - --input is required"),
        (["--count", "0", "--text", "x", "--file", "y"], "--count 0 must be at least 1\n  - --file and --text are mut"),
        (["--count", "--input"], "  - --count needs a value\n  - --input needs at least one value"),
        (["a.txt"], "unexpected argument 'a.txt': every option is a flag; did you mean --input a.txt?\n  - --input is"),
    ],
)
def test_wrong_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(*words)
    assert said in capsys.readouterr().err


def test_the_help_shows_defaults_and_names_of_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    said = capsys.readouterr().out
    assert "--input FILE [FILE ...]" in said and "Files.\n" in said and "A count. (default: 3)" in said
    assert "data:" in said and "--vocab-size N" in said and "--num-workers" not in said
