"""What every command line shares: exit status, errors in one line, parsers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .command_line_errors import in_one_sentence

Main = Callable[[Sequence[str] | None], int]

TRACEBACK_VARIABLE = "FWPKM_TRACEBACK"


def run_cli(main: Main, argv: Sequence[str] | None = None) -> int:
    """Run an entry point and turn what a user can cause into one line on standard error; returns the exit status.

    ValueError, OSError and missing packages end as `error: ...` with status 1, Ctrl-C with 130; wrong usage has left
    with status 2 by argparse. With the environment variable FWPKM_TRACEBACK=1 errors keep their traceback.
    """
    try:
        return main(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has left; Python would complain again when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        sys.stdout.flush()
        print(f"error: {message(error)}", file=sys.stderr)
        return 1


class Parser(argparse.ArgumentParser):
    """A parser whose errors are sentences like all other errors of the program."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong with the command line, and leave with status 2."""
        super().error(in_one_sentence(message))


def tool_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a tool's docstring as it is written, and takes flags in full only."""
    return Parser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def message(error: Exception) -> str:
    """The text of an error that a user can cause, with its notes in parentheses."""
    notes = getattr(error, "__notes__", [])
    return _said(error) + (f" ({'; '.join(notes)})" if notes else "")


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed here; run `make setup`, or see `python tools/doctor.py`"
    return str(error) or type(error).__name__
