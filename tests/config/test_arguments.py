"""Dataclass to command line: flags, types, help."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from megatron_fwpkm.config.arguments import (
    add_dataclass_arguments,
    convert,
    describe,
    field_docstrings,
    from_namespace,
    options,
)
from megatron_fwpkm.config.loading import option_groups


@dataclass(frozen=True)
class Sample:
    """One field of every kind."""

    count: int = 3
    """A count of
    things."""
    share: float = 0.5
    """A share of 100 %."""
    name: str | None = None
    """A name; default the folder's."""
    title: str = "x"
    """A title."""
    on: bool = True
    """A switch."""
    color: Literal["red", "green"] = "red"
    """A colour."""
    layers: tuple[int, ...] = (1,)
    """Layers."""
    paths: tuple[str, ...] = ()
    """Paths."""
    windows: tuple[tuple[int, int], ...] = ()
    """Windows."""
    limit: int | None = 7
    """A limit."""


def parse(*words: str) -> Sample:
    parser = argparse.ArgumentParser(prog="tool", allow_abbrev=False)
    add_dataclass_arguments(parser, Sample, "my-")
    return from_namespace(Sample, parser.parse_args(words), "my-")


def test_nothing_given_is_the_default():
    assert parse() == Sample()


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["--my-count", "-4"], {"count": -4}),
        (["--my-share", "1e-3"], {"share": 1e-3}),
        (["--my-share", "-1e-3"], {"share": -1e-3}),
        (["--my-share", "-.5"], {"share": -0.5}),
        (["--my-name", "a b"], {"name": "a b"}),
        (["--my-name", "none"], {"name": None}),
        (["--my-title", "none"], {"title": "none"}),
        (["--my-limit", "none"], {"limit": None}),
        (["--no-my-on"], {"on": False}),
        (["--no-my-on", "--my-on"], {"on": True}),
        (["--my-color", "green"], {"color": "green"}),
        (["--my-layers", "3", "7", "11"], {"layers": (3, 7, 11)}),
        (["--my-layers", "none"], {"layers": ()}),
        (["--my-paths", "0.5", "a", "0.5", "b"], {"paths": ("0.5", "a", "0.5", "b")}),
        (["--my-windows", "127,0", "-1,0"], {"windows": ((127, 0), (-1, 0))}),
        (["--my-windows", "-1,0", "--my-count", "9"], {"windows": ((-1, 0),), "count": 9}),
    ],
)
def test_values(words, change):
    assert parse(*words) == replace(Sample(), **change)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--my-count", "1.5"], "--my-count '1.5' is not an integer"),
        (["--my-count", "none"], "--my-count 'none' is not an integer"),
        (["--my-share", "fast"], "--my-share 'fast' is not a number"),
        (["--my-share", "nan"], "--my-share 'nan' is not a finite number"),
        (["--my-color", "blue"], "tool: error: --my-color 'blue' is not one of red, green"),
        (["--my-layers", "3", "x"], "--my-layers 'x' is not an integer"),
        (["--my-layers", "3,7"], "--my-layers '3,7' must be written with spaces: 3 7"),
        (["--my-windows", "127"], "'127' is not a pair of integers like 127,0"),
        (["--my-windows", "1,0,0"], "'1,0,0' is not a pair"),
        (["--my-layers"], "expected at least one argument"),
        (["--my-cou", "3"], "unrecognized arguments: --my-cou"),
    ],
)
def test_wrong_values_are_usage_errors_that_name_flag_and_value(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help_is_the_docstring_with_the_default():
    by_name = {option.field_name: option for option in options(Sample, "my-")}
    assert describe(by_name["count"]) == "A count of things. (default: 3)"
    assert describe(by_name["name"]) == "A name; default the folder's."
    assert describe(by_name["on"]) == "A switch. (default: true)"
    assert describe(by_name["windows"]) == "Windows. (default: none)"
    parser = argparse.ArgumentParser()
    add_dataclass_arguments(parser, Sample, "my-")
    text = " ".join(parser.format_help().split())
    assert "Sample: One field of every kind." in text
    assert "--my-on, --no-my-on" in text
    assert "--my-color {red,green}" in text
    assert "A share of 100 %." in text


def test_defaults_are_written_as_they_are_typed():
    for _, cls, found in option_groups():
        for option in found:
            if option.is_boolean or option.default in (None, ()):
                continue
            text = option.format(option.default)
            assert convert(option, text.split() if option.is_list else [text]) == option.default, (cls, option.flag)


def test_every_option_has_one_sentence_and_one_flag():
    flags: list[str] = []
    for _, cls, found in option_groups():
        assert set(field_docstrings(cls)) == {option.field_name for option in found}
        for option in found:
            assert option.help.endswith(".") and option.help[0].isupper() or option.help[0] == "z", option.flag
            flags.append(option.flag)
    assert len(flags) == len(set(flags)) > 90


@dataclass(frozen=True)
class Undocumented:
    """A field without a docstring."""

    x: int = 1


def test_a_field_without_docstring_is_our_bug():
    with pytest.raises(AssertionError, match="Undocumented.x has no docstring"):
        options(Undocumented)
