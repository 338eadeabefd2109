"""Dataclass to command line: every field becomes a flag, its docstring the help text (DESIGN section 5)."""

from __future__ import annotations

import argparse
import ast
import inspect
import math
import re
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Protocol, TypeVar

from .field_metadata import ValueRange, field_metadata, unmet_demand

_MOST_DIGITS = 100
"""More digits than any sensible integer has; longer ones do not fit a float, and Python refuses thousands."""
BOOLEAN_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Spellings of a boolean in YAML."""

NONE_WORDS = ("none", "null", "~", "")
"""Spellings of nothing in YAML; the command line takes `none`."""

# Also "-1,0" and "-1e-3" are values and not flags.
_NEGATIVE_VALUE = re.compile(r"^-\.?\d[\d.,eE+-]*$")


class _Dataclass(Protocol):
    __dataclass_fields__: typing.ClassVar[dict[str, Any]]


D = TypeVar("D", bound=_Dataclass)


@dataclass(frozen=True)
class Option:
    """One field of a configuration dataclass as a flag."""

    flag: str
    """With its two dashes and its prefix."""
    field_name: str
    kind: str
    """What a value is, in a word: number, integer, true or false, text, one of the choices, LEFT,RIGHT."""
    parse: Callable[[str], Any]
    """One written value (for a list: one item) to its Python value; ValueError says what is wrong with it."""
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    is_list: bool = False
    nullable: bool = False
    none_is_text: bool = False
    """Whether `none` is a value like another instead of unsetting one: it is for the tools, which have no files."""
    metadata: tuple[Any, ...] = ()
    """What the field's Annotated says."""

    @property
    def name(self) -> str:
        """The flag without its leading dashes: the name in YAML."""
        return self.flag[2:]

    @property
    def is_boolean(self) -> bool:
        """Whether the flag is a switch with a --no- form."""
        return self.parse is _boolean

    def format(self, value: Any) -> str:
        """A value as one would type it."""
        if value is None or value == ():
            return "none"
        if self.is_list:
            return " ".join(format_item(item) for item in value)
        return format_item(value)


def format_item(value: Any) -> str:
    """One value as one would type it: `true`, `0.001`, `127,0`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return str(value)


def options(cls: type, prefix: str = "") -> list[Option]:
    """The options of a dataclass, in the order of its fields; `prefix` (like `fwpkm-`) begins every flag."""
    hints = typing.get_type_hints(cls)
    helps = field_docstrings(cls)
    found = []
    for item in fields(cls):
        if is_dataclass(hints[item.name]):
            continue
        assert item.name in helps, f"{cls.__name__}.{item.name} has no docstring"
        annotation, nullable = _without_none(hints[item.name])
        is_list = typing.get_origin(annotation) is tuple and typing.get_args(annotation)[-1] is Ellipsis
        if is_list:
            annotation = typing.get_args(annotation)[0]
        kind, parse, choices = _converter(annotation)
        found.append(
            Option(
                flag="--" + prefix + item.name.replace("_", "-"),
                field_name=item.name,
                kind=kind,
                parse=parse,
                default=item.default,
                help=helps[item.name],
                choices=choices,
                is_list=is_list,
                nullable=nullable,
                metadata=field_metadata(cls)[item.name],
            )
        )
    return found


@cache
def field_docstrings(cls: type) -> dict[str, str]:
    """The string after each field in the source of a dataclass and of those it extends, on one line."""
    found: dict[str, str] = {}
    for base in cls.__bases__:
        if is_dataclass(base):
            found |= field_docstrings(base)
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def add_dataclass_arguments(parser: argparse.ArgumentParser, cls: type, prefix: str = "") -> None:
    """Add a group of flags to a parser, one per field.

    A flag that is not given leaves no attribute behind, so that what was given can be told from defaults;
    `from_namespace` fills in the rest. Values like `-1,0` are understood as values.
    """
    parser._negative_number_matcher = _NEGATIVE_VALUE
    title = cls.__name__.removesuffix("Config")
    group = parser.add_argument_group(title, " ".join((cls.__doc__ or "").split()))
    for option in options(cls, prefix):
        add_option(group, option)


def add_option(group: argparse._ActionsContainer, option: Option, **changes: Any) -> None:
    """Add the flag of one option to a parser or a group of it; `changes` are other arguments of `add_argument`."""
    names = [option.flag, *changes.pop("more_names", ())]
    common: dict[str, Any] = {"dest": option.name.replace("-", "_"), "default": argparse.SUPPRESS}
    common["help"] = describe(option).replace("%", "%%")
    if option.is_boolean:
        group.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
        return
    nargs = "+" if option.is_list else None
    common |= {"nargs": nargs, "metavar": metavar(option)}
    group.add_argument(*names, action=_StoreOption, option=option, **(common | changes))


def from_namespace(cls: type[D], namespace: argparse.Namespace, prefix: str = "") -> D:
    """The dataclass made of a parsed command line; fields that were not given have their defaults."""
    given = vars(namespace)
    values = {}
    for option in options(cls, prefix):
        dest = option.name.replace("-", "_")
        if dest in given:
            values[option.field_name] = given[dest]
    return cls(**values)


def convert(option: Option, words: list[str]) -> Any:
    """Written values to the value of the field.

    Raises ValueError without naming the flag (the caller knows where the words stood).
    """
    if words == ["none"] and (option.nullable or option.is_list) and not option.none_is_text:
        return () if option.is_list else None
    if option.is_list:
        for word in words:
            parts = split_values(option, word)
            if option.kind != "text" and len(parts) > 1:
                raise ValueError(f"{word!r} must be written with spaces: {' '.join(parts)}")
        return tuple(option.parse(word) for word in words)
    return option.parse(words[0])


def split_values(option: Option, word: str) -> list[str]:
    """The values that one word seems to hold: `3,7` are two, unless values have commas of their own."""
    return (word if option.kind == "LEFT,RIGHT" else word.replace(",", " ")).split()


def describe(option: Option) -> str:
    """Help text with the default, unless there is none or the text itself says what stands in for a missing value."""
    if option.default is MISSING or option.default in (None, ()) and "default" in option.help:
        return option.help
    return f"{option.help} (default: {option.format(option.default)})"


def metavar(option: Option) -> str:
    """How a value is spelled in the usage line."""
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    written = {"integer": "N", "number": "X", "LEFT,RIGHT": "LEFT,RIGHT", "all or an integer": "{all,N}"}
    return written.get(option.kind, "TEXT")


class _StoreOption(argparse.Action):
    """Converts all words of a flag together, because `none` stands for a whole list."""

    def __init__(self, option_strings: list[str], dest: str, option: Option, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, **kwargs)
        self.option = option

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            words = values if isinstance(values, list) else [values]
            converted = convert(self.option, words)
            if self.option.none_is_text:
                _check_ranges(self.option, words, converted)
        except ValueError as error:
            raise argparse.ArgumentError(None, f"{option_string} {error}") from None
        setattr(namespace, self.dest, converted)


def _check_ranges(option: Option, words: list[str], converted: Any) -> None:
    if any(isinstance(item, ValueRange) for item in option.metadata):
        for word, value in zip(words, converted if option.is_list else (converted,), strict=True):
            if (demand := unmet_demand(option.metadata, value)) is not None:
                raise ValueError(f"{word} must {demand}")


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """`X | None` to (X, True), anything else to (itself, False)."""
    if type(None) in typing.get_args(annotation):
        rest = [part for part in typing.get_args(annotation) if part is not type(None)]
        assert len(rest) == 1, f"{annotation} is no type of an option"
        return rest[0], True
    return annotation, False


def _converter(annotation: Any) -> tuple[str, Callable[[str], Any], tuple[str, ...]]:
    """(kind, parser of one written value, choices) of an annotation."""
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        return "choice", lambda word: _choice(word, choices), choices
    if annotation == tuple[int, int]:
        return "LEFT,RIGHT", _pair, ()
    if annotation == int | Literal["all"]:
        return "all or an integer", _all_or_integer, ()
    simple: dict[Any, tuple[str, Callable[[str], Any]]] = {
        bool: ("true or false", _boolean),
        int: ("integer", _integer),
        float: ("number", _number),
        str: ("text", str),
    }
    kind, parse = simple[annotation]
    return kind, parse, ()


def _boolean(word: str) -> bool:
    if word.lower() not in BOOLEAN_WORDS:
        raise ValueError(f"{word!r} is neither true nor false")
    return BOOLEAN_WORDS[word.lower()]


def _integer(word: str) -> int:
    _refuse_many_digits(word)
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{word!r} is not an integer") from None


def _all_or_integer(word: str) -> int | str:
    try:
        return word if word == "all" else _integer(word)
    except ValueError:
        raise ValueError(f"{word!r} is neither all nor an integer") from None


def _refuse_many_digits(word: str) -> None:
    digits = word.strip().strip("+-")
    if len(digits) > _MOST_DIGITS and digits.isdecimal():
        raise ValueError(f"{digits[:9]}... has {len(digits)} digits, which is too large for any option")


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{word!r} is not a finite number")
    return value


def _pair(word: str) -> tuple[int, int]:
    parts = word.split(",")
    for part in parts:
        _refuse_many_digits(part)
    try:
        left, right = (int(part) for part in parts)
    except ValueError:
        raise ValueError(f"{word!r} is not a pair of integers like 127,0") from None
    return left, right


def _choice(word: str, choices: tuple[str, ...]) -> str:
    if word not in choices:
        raise ValueError(f"{word!r} is not one of {', '.join(choices)}")
    return word
