"""What every command line shares: exit status, errors in one line, parsers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from .command_line_errors import (
    are_required,
    complaints_of_unknown,
    in_one_sentence,
    is_flag,
    join_complaints,
    tool_advice,
    without_flags,
    without_values_of_switches,
)

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
    """A parser that names everything that is wrong with a command line at once, in sentences, and takes flags in full.

    Its commands are parsers of this class, too.
    """

    answers: Mapping[str, str] = {}
    """What to do instead, by the names of flags of other programs."""
    flag_of_files = "--input"
    """Which flag, if there is one, a word may belong to that stands alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "exit_on_error": False} | kwargs)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the words, by default the process's; no word is left over. Wrong usage leaves with status 2."""
        switches = [str(action.option_strings[0]) for action in self._actions if _is_switch(action)]
        words, complaints = without_values_of_switches(sys.argv[1:] if args is None else args, switches)
        required = [action for action in self._actions if action.required]
        # The help text shows what is required, and argparse would name nothing else that is wrong.
        lifted = [] if {"-h", "--help"} & {*words} else required
        try:
            for action in lifted:
                action.required = False
            parsed, left, wrong = self._parse_what_is_right(words, namespace)
        finally:
            for action in lifted:
                action.required = True
        missing = [_name(action) for action in required if not _is_given(action, words, parsed)]
        flag_of_files = self.flag_of_files if self.flag_of_files in self._option_string_actions else None
        complaints += [*complaints_of_unknown(words, left, self.advise, flag_of_files), *wrong]
        complaints += [are_required(missing)] if missing else []
        if complaints:
            self.error(join_complaints(complaints))
        return parsed, []

    def _parse_what_is_right(
        self, words: Sequence[str], namespace: argparse.Namespace | None
    ) -> tuple[argparse.Namespace, list[str], list[str]]:
        """What argparse makes of the words, those that it leaves over, and complaints about what is left out."""
        wrong: list[str] = []
        while True:
            try:
                return (*super().parse_known_args(words, namespace), wrong)
            except argparse.ArgumentError as error:
                wrong.append(in_one_sentence(str(error)))
                # An error of ours begins with the flag.
                names = (error.argument_name or str(error).split()[0]).split("/")
            right = without_flags(words, names)
            if len(right) == len(words):  # a command that does not exist: the words after it mean nothing
                commands = argparse.Namespace(**{action.dest: "" for action in self._actions})
                return commands, list(takewhile(is_flag, words)), wrong
            words = right

    def advise(self, name: str) -> str:
        """What to do about an unknown flag, which is `name` without its dashes; empty if nothing is known of it."""
        return tool_advice(name, list(self._option_string_actions), self.answers)


def _is_switch(action: argparse.Action) -> bool:
    return isinstance(action, argparse.BooleanOptionalAction)


def _name(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)


def _is_given(action: argparse.Action, words: Sequence[str], parsed: argparse.Namespace) -> bool:
    if action.option_strings:
        return not {word.partition("=")[0] for word in words}.isdisjoint(action.option_strings)
    return getattr(parsed, action.dest, None) is not None


def tool_parser(description: str | None) -> Parser:
    """A parser that shows a tool's docstring as it is written."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


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
