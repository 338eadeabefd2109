"""The flags that tools/preflight.py has beside those of pretrain.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from ..config import loading
from ..config.command_line_errors import in_our_spelling
from ..config.field_metadata import Above, AtLeast, AtMost
from ..config.tool_options import Metavar, add_tool_options, from_words


@dataclass(frozen=True)
class PreflightOptions:
    """Limits of the pre-flight and where its report goes."""

    preflight_timeout: Annotated[float, Above(0), AtMost(86400), Metavar("SECONDS")] = 60.0
    """how long any wait may take: for the other nodes, for a disk, for a group of processes"""
    preflight_bytes: Annotated[int, AtLeast(1024), AtMost(2**34), Metavar("BYTES")] = 2**25
    """size of the timed all-reduce and of the messages between neighbours"""
    preflight_json: Annotated[str | None, Metavar("FILE")] = None
    """file in which rank 0 writes the report as JSON"""


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of all flags of pretrain.py and those of the pre-flight."""
    parser = loading.build_parser("preflight.py")
    parser.description, parser.epilog = description, None
    return add_tool_options(parser, PreflightOptions)


def parse_preflight(argv: Sequence[str] | None, description: str | None) -> tuple[PreflightOptions, loading.Resolved]:
    """The pre-flight's own options, and the run's.

    Wrong usage leaves with status 2; raises ValueError and OSError as `parse_pretrain` does.
    """
    namespace = build_parser(description).parse_args(in_our_spelling(sys.argv[1:] if argv is None else argv))
    return from_words(PreflightOptions, namespace), loading.resolve(namespace)
