"""The lines that a user types: questions, and commands that begin with a slash."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...config.cli import message
from ...hf.generation import read_text
from .session import Session, sources_of

HELP = """\
Any other line is a text that the model continues. Commands:
  /read FILE             read a document into the memory
  /save FOLDER           keep the memory, and what wrote it, in a folder
  /load FOLDER           take a memory that was kept
  /fork [NAME]           go on with a copy of the memory; the original stays
  /switch NAME           go to another memory of this session
  /forget                back to the initial memory
  /show                  which text wrote the slots that were read for the last answer
  /memory on|frozen|off  on: remember questions and answers, too; frozen: only what is read; off: use no memory
  /help                  this list
  /quit                  end the session"""

MODES = ("on", "frozen", "off")


def run_lines(session: Session, lines: Iterable[str]) -> int:
    """Obey lines until they end, or until /quit. What goes wrong with one is said in one line on standard error.

    Returns:
        How many lines were not obeyed.
    """
    failed = 0
    for line in lines:
        if line.split()[:1] == ["/quit"]:
            return failed
        try:
            run_line(session, line)
        except KeyboardInterrupt:
            print("\nstopped; the memory is as it was before", file=sys.stderr)
        except (ValueError, OSError) as error:
            failed += 1
            sys.stdout.flush()
            print(f"error: {message(error)}", file=sys.stderr)
    return failed


def run_line(session: Session, line: str) -> None:
    """Obey one line.

    Raises:
        ValueError: an unknown command, or what the session says about it.
        OSError: a file cannot be read or written.
    """
    if not line.strip():
        return
    if not line.startswith("/"):
        session.ask(line.rstrip("\n"))
        return
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise ValueError(f"there is no command {name}; /help lists them")
    command(session, argument.strip())


def read_file(session: Session, path: str) -> None:
    """Read a document with a bar of progress on a terminal, and say how long it took."""
    text = read_text(_given(path, "/read FILE"))
    console, start = Console(stderr=True), time.monotonic()
    speed = TextColumn("{task.fields[speed]} tokens/s")
    columns = TextColumn(f"reading {Path(path).name}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None, speed="-")

        def _progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, speed=f"{done / (time.monotonic() - start):,.0f}")

        count = session.read(path, text, _progress)
    seconds, size = time.monotonic() - start, session.memory.cache.nbytes / 1e6
    speed_reached = f"{count:,} tokens in {seconds:.1f} s ({count / seconds:,.0f} tokens/s)"
    print(f"read {path}: {speed_reached}; the memory is {size:.1f} MB", file=sys.stderr)


def _save(session: Session, folder: str) -> None:
    target = Path(_given(folder, "/save FOLDER"))
    if (target / "config.json").exists():
        raise ValueError(f"{folder} is the folder of a model; give another one")
    session.save(folder)
    print(f"saved to {folder}", file=sys.stderr)


def _load(session: Session, folder: str) -> None:
    session.load(_given(folder, "/load FOLDER"))
    print(f"{session.current} is now the memory of {folder}", file=sys.stderr)


def _fork(session: Session, name: str) -> None:
    before = session.current
    print(f"{session.fork(name)} goes on from {before}; /switch {before} goes back", file=sys.stderr)


def _switch(session: Session, name: str) -> None:
    session.switch(_given(name, "/switch NAME"))
    print(f"{name} is current", file=sys.stderr)


def _forget(session: Session, argument: str) -> None:
    session.forget()
    print(f"{session.current} is the initial memory again", file=sys.stderr)


def _show(session: Session, argument: str) -> None:
    print("\n".join(sources_of(session.answer, session.tokenizer, session.model.config.fwpkm_lookahead)))


def _set_mode(session: Session, mode: str) -> None:
    if not mode:
        print(f"the memory is {session.mode}", file=sys.stderr)
        return
    if mode not in MODES:
        raise ValueError(f"/memory {mode}: choose from {', '.join(MODES)}; it is {session.mode}")
    session.mode = mode
    print(f"the memory is {mode}", file=sys.stderr)


def _help(session: Session, argument: str) -> None:
    print(HELP)


def _given(argument: str, usage: str) -> str:
    if not argument:
        raise ValueError(f"usage: {usage}")
    return argument


COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "/read": read_file, "/save": _save, "/load": _load, "/fork": _fork, "/switch": _switch, "/forget": _forget,
    "/show": _show, "/memory": _set_mode, "/help": _help,
}  # fmt: skip
