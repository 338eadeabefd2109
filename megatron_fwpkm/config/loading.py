"""A pretraining run's configuration from its command line and YAML files, with the origin of every value.

YAML is a saved command line (DESIGN section 5): flat, the same names, and every value is read from its written text by
the same parser, so that `lr: 1e-3` is a number although YAML 1.1 takes it for text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from .arguments import (
    BOOLEAN_WORDS,
    NONE_WORDS,
    Option,
    add_dataclass_arguments,
    convert,
    format_item,
    from_namespace,
    options,
    split_values,
)
from .blend_files import blends_from_files
from .cli import Parser
from .command_line_errors import advice, in_our_spelling
from .pretrain import PretrainConfig

PREFIXES = {"linear_attention": "linear-", "fwpkm": "fwpkm-", "fwmlp": "fwmlp-", "pkm": "pkm-", "needle": "needle-"}
"""What the flags of a group begin with."""

DEFAULT = "default"
COMMAND_LINE = "command line"
CHECKPOINT = "checkpoint "
"""What the origin of a value begins with that was taken from a checkpoint; its folder follows."""

_USAGE = "%(prog)s [--config FILE] [flags]"
_DESCRIPTION = """\
Pretrain a language model with a fast-weight product key memory on Megatron-Core.

Every option is a flag below and, without its dashes, a name in a YAML file given by --config: the file is a saved
command line (flat, the same names, lists for several values), and the command line takes precedence. Booleans have two
forms (--x, --no-x). `none` unsets a value or empties a list."""
_EPILOG = """\
examples:
  python pretrain.py --config examples/paper/base_112m.yaml --dry-run
      show what would run: options with their origins, layers, parameters, memory per rank; no GPU is needed
  python pretrain.py --config my.yaml --data-path runs/mine/corpus_text_document --save runs/mine/checkpoints --resume
      train, or resume from the latest checkpoint
  torchrun --nproc-per-node 8 pretrain.py --config my.yaml --tensor-model-parallel-size 2
      eight processes: four replicas, each split over two processes by tensor parallelism"""


@dataclass(frozen=True)
class Resolved:
    """A configuration and where each of its values came from."""

    config: PretrainConfig
    value_sources: dict[str, str]
    """By flag (`--lr`): `default`, `file.yaml:12`, `command line` or `checkpoint runs/mine/iter_0001000`."""
    notices: tuple[str, ...] = ()
    """What to say at the start about values that were replaced."""

    def to_yaml(self) -> str:
        """All values as YAML that reads back to the same configuration, each with its origin as a comment."""
        lines = ["# The resolved configuration of a run; read it again with --config."]
        for group, _, found in option_groups():
            lines += ["", f"# {group}"]
            for option in found:
                value = getattr(getattr(self.config, group), option.field_name)
                lines.append(f"{option.name}: {_to_yaml(option, value)}  # {self.value_sources[option.flag]}")
        return "\n".join(lines) + "\n"


def option_groups() -> Iterator[tuple[str, type, list[Option]]]:
    """(name, dataclass, options) of every group of PretrainConfig, in order."""
    for group in fields(PretrainConfig):
        cls = group.default_factory
        assert isinstance(cls, type)
        yield group.name, cls, options(cls, PREFIXES.get(group.name, ""))


class _PretrainParser(Parser):
    """Knows the flags of Megatron-LM."""

    flag_of_files = "--config"

    def advise(self, name: str) -> str:
        """What Megatron-LM's flag is called here, or what is spelled like it."""
        names = [option.name for _, _, found in option_groups() for option in found]
        return advice(name, ["config", *names], "--")


def build_parser(prog: str | None = "pretrain.py") -> Parser:
    """The parser of pretrain.py: --config and a group of flags per dataclass."""
    parser = _PretrainParser(
        prog=prog,
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file with options; may be given several times, later files take precedence",
    )
    for group, cls, _ in option_groups():
        add_dataclass_arguments(parser, cls, PREFIXES.get(group, ""))
    return parser


def parse_pretrain(argv: Sequence[str] | None = None) -> Resolved:
    """Read a command line (default: the process's) and the YAML files it names.

    Wrong usage of a flag leaves with status 2 by argparse. What a file gets wrong is a ValueError that begins with
    `file:line`; a file that cannot be read is an OSError. Rules between options are `validation.validate`'s.
    """
    return resolve(build_parser().parse_args(in_our_spelling(sys.argv[1:] if argv is None else argv)))


def resolve(namespace: argparse.Namespace) -> Resolved:
    """The configuration of a command line that `build_parser`'s parser has read, with the files that it names.

    Raises ValueError and OSError as `parse_pretrain` does.
    """
    known = {option.name: option for _, _, found in option_groups() for option in found}
    sources = dict.fromkeys((option.flag for option in known.values()), DEFAULT)
    merged: dict[str, Any] = {}
    for path in namespace.config:
        for option, value, line in read_yaml(path, known):
            merged[_dest(option)] = value
            sources[option.flag] = f"{path}:{line}"
    for option in known.values():
        if hasattr(namespace, _dest(option)):
            merged[_dest(option)] = getattr(namespace, _dest(option))
            sources[option.flag] = COMMAND_LINE
    for name, (blend, source) in blends_from_files(merged).items():
        merged |= {name: blend, "data_args_path": None, "per_split_data_args_path": None}
        sources["--" + name.replace("_", "-")] = source
    whole = argparse.Namespace(**merged)
    groups: dict[str, Any] = {
        group: from_namespace(cls, whole, PREFIXES.get(group, "")) for group, cls, _ in option_groups()
    }
    return Resolved(PretrainConfig(**groups), sources)


def read_yaml(path: str, known: dict[str, Option]) -> list[tuple[Option, Any, int]]:
    """(option, value, line) of every entry of a YAML file.

    Raises ValueError, beginning with `file:line`, for text that is no YAML, an unknown or repeated name, a nested
    mapping and a value of the wrong type.
    """
    root = _compose(path)
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}:{_line(root)}: a configuration must consist of lines `name: value`")
    found: list[tuple[Option, Any, int]] = []
    seen: dict[str, int] = {}
    for key, node in root.value:
        where = f"{path}:{_line(key)}"
        option = _find(where, key, node, known)
        if option.name in seen:
            raise ValueError(
                f"{where}: {option.name} is given twice (first on line {seen[option.name]}); remove one"
            )
        seen[option.name] = _line(key)
        try:
            found.append((option, _value(option, node), _line(key)))
        except ValueError as error:
            raise ValueError(f"{path}:{_line(node)}: {option.name}: {error}") from None
    return found


def _compose(path: str) -> yaml.Node | None:
    """The node tree of a file, which unlike the loaded value keeps lines, repeated keys and written text."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        why = "the file does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise ValueError(f"--config {path}: {why}; give the path of a YAML file of flags") from None
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML: {error}") from None


def _find(where: str, key: yaml.Node, node: yaml.Node, known: dict[str, Option]) -> Option:
    """The option that a key of the file names."""
    if not isinstance(key, yaml.ScalarNode):
        raise ValueError(f"{where}: a name must be a single word, as in `lr: 0.001`")
    name = key.value.replace("_", "-")
    if isinstance(node, yaml.MappingNode):
        inner = next((k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode)), "x").replace("_", "-")
        flat = next((other for other in (inner, f"{name}-{inner}") if other in known), f"{name}-{inner}")
        raise ValueError(
            f"{where}: {key.value} is a nested mapping, but names are flat, as on the command line: write "
            f"`{flat}: ...` without indentation"
        )
    if name in known:
        return known[name]
    if name == "config":
        raise ValueError(f"{where}: a file cannot include another file; give --config several times instead")
    bare = name.lstrip("-")
    if bare in known:
        raise ValueError(f"{where}: write {bare} without the leading dashes")
    positive = bare.removeprefix("no-")
    if positive in known and known[positive].is_boolean:
        raise ValueError(f"{where}: write `{positive}: false` instead of {key.value}")
    raise ValueError(f"{where}: unknown option {key.value}{advice(bare, list(known))}")


def _value(option: Option, node: yaml.Node) -> Any:
    """The value of a node; ValueError for a wrong type, without place or name."""
    if isinstance(node, yaml.SequenceNode):
        if not option.is_list and option.kind == "LEFT,RIGHT":
            return option.parse(_item(option, node))
        if not option.is_list:
            raise ValueError(f"expected {option.kind}, but got a list")
        return tuple(option.parse(_item(option, item)) for item in node.value)
    if _is_none(node):
        if option.nullable or option.is_list:
            return () if option.is_list else None
        raise ValueError(f"has no value; give one ({option.kind}), or remove the line")
    word = _item(option, node)
    words = split_values(option, word)
    if option.is_list and option.kind != "text" and len(words) > 1:
        raise ValueError(f"write several values as a list: [{', '.join(words)}]")
    if _is_plain(node):
        return convert(option, [word])
    return (option.parse(word),) if option.is_list else option.parse(word)


def _item(option: Option, node: yaml.Node) -> str:
    """The written text of one value; a pair may also be written as a list of two."""
    if isinstance(node, yaml.SequenceNode) and option.kind == "LEFT,RIGHT":
        return ",".join(_item(option, part) for part in node.value)
    if not isinstance(node, yaml.ScalarNode):
        found = "list" if isinstance(node, yaml.SequenceNode) else "mapping"
        raise ValueError(f"expected {option.kind}, but got a {found}")
    if option.kind == "text" and _is_plain(node) and node.value.lower() in BOOLEAN_WORDS:
        raise ValueError(f"expected text, but got {node.value}; put it in quotes if you mean the text")
    return node.value


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None


def _is_none(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and _is_plain(node) and node.value.lower() in NONE_WORDS


def _to_yaml(option: Option, value: Any) -> str:
    if value is None:
        return "null"
    if option.is_list:
        return "[" + ", ".join(_scalar(option, item) for item in value) + "]"
    return _scalar(option, value)


def _scalar(option: Option, value: Any) -> str:
    if option.kind == "LEFT,RIGHT":
        return f'"{format_item(value)}"'
    if isinstance(value, float):
        # YAML 1.1 readers take 1e-05 for text: give the mantissa its point.
        mantissa, mark, exponent = repr(value).partition("e")
        return repr(value) if not mark else f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"
    if option.kind != "text":
        return format_item(value)
    # Quoted unless it is plain beyond doubt; inside a flow list, too.
    simple = value and all(letter.isalnum() or letter in "_./" for letter in value) and value.isascii()
    if simple and not value[0].isdigit() and value.lower() not in (*BOOLEAN_WORDS, *NONE_WORDS):
        return value
    return yaml.safe_dump(value, default_style='"', width=sys.maxsize).strip()


def _dest(option: Option) -> str:
    return option.name.replace("-", "_")


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
