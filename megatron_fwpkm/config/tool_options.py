"""The flags of a tool from a frozen dataclass, as pretrain.py has them: a field is a flag, its docstring the help text.

A field without a default is a required flag. `Annotated` says what types cannot:

    lengths: Annotated[tuple[int, ...], AtLeast(1), Metavar("N")]
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any

from .arguments import D, Option, add_option, from_namespace, options
from .cli import Parser
from .field_metadata import Mark, field_metadata


@dataclass(frozen=True)
class Metavar:
    """How a value is spelled in the help text."""

    word: str


@dataclass(frozen=True)
class Flag:
    """The flag of a field that is called otherwise, and other spellings of it."""

    name: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Only:
    """Of a field that is a dataclass: its fields with this mark are flags, in a group of their own."""

    mark: Mark


@dataclass(frozen=True)
class NotWith:
    """Only one of the flags that have the same name here may be given."""

    name: str


@dataclass(frozen=True)
class MayBeEmpty:
    """The flag of a list may be given without a value, for an empty list."""


def options_of_tool(cls: type) -> list[tuple[type, Option]]:
    """(dataclass, option) of every flag of a tool."""
    hints = typing.get_type_hints(cls)
    found = [(cls, replace(_named(option), none_is_text=True)) for option in options(cls)]
    for name, metadata in field_metadata(cls).items():
        for item in metadata:
            if isinstance(item, Only):
                inner = [option for option in options(hints[name]) if item.mark in option.metadata]
                found += [(hints[name], replace(option, none_is_text=True, metadata=())) for option in inner]
    return found


def add_tool_options(parser: Parser, cls: type) -> Parser:
    """Add the flags of a tool to its parser, which is returned; `parse_tool` makes the dataclass."""
    exclusive: dict[str, argparse._MutuallyExclusiveGroup] = {}
    groups: dict[type, argparse._ActionsContainer] = {cls: parser}
    for owner, option in options_of_tool(cls):
        if owner not in groups:
            groups[owner] = parser.add_argument_group(owner.__name__.removesuffix("Config").lower())
        group, changes = groups[owner], dict[str, Any]()
        for item in option.metadata:
            if isinstance(item, Metavar):
                changes["metavar"] = item.word
            elif isinstance(item, Flag):
                changes["more_names"] = item.others
            elif isinstance(item, MayBeEmpty):
                changes["nargs"] = "*"
            elif isinstance(item, NotWith):
                if item.name not in exclusive:
                    exclusive[item.name] = parser.add_mutually_exclusive_group()
                group = exclusive[item.name]
        if option.default is MISSING:
            changes["required"] = True
        add_option(group, option, **changes)
    return parser


def parse_tool(
    parser: Parser, cls: type[D], argv: Sequence[str] | None, answers: Mapping[str, str] | None = None
) -> D:
    """The dataclass of a command line. Wrong usage leaves with status 2, all of it named at once.

    Args:
        parser: what `add_tool_options` made.
        cls: the same dataclass.
        argv: the words, by default the process's.
        answers: what to do instead, by the names of flags of other programs.
    """
    parser.answers = answers or {}
    return from_words(cls, parser.parse_args(argv))


def from_words(cls: type[D], namespace: argparse.Namespace) -> D:
    """The dataclass made of a parsed command line."""
    hints = typing.get_type_hints(cls)
    given = {_destination(option): option for option in map(_named, options(cls))}
    values = {option.field_name: getattr(namespace, name) for name, option in given.items() if hasattr(namespace, name)}
    for item in fields(cls):
        if is_dataclass(hints[item.name]):
            values[item.name] = from_namespace(hints[item.name], namespace)
    return cls(**values)


def _named(option: Option) -> Option:
    """The option under the flag that its field asks for."""
    return next((replace(option, flag=item.name) for item in option.metadata if isinstance(item, Flag)), option)


def _destination(option: Option) -> str:
    return option.name.replace("-", "_")

