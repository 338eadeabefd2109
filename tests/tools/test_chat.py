"""tools/chat.py as a user runs it, and the session behind it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_fwpkm.conversion import export
from megatron_fwpkm.evaluation.chat import commands, session
from megatron_fwpkm.evaluation.chat.commands import HELP, run_lines
from megatron_fwpkm.evaluation.chat.session import Session, sources_of
from megatron_fwpkm.evaluation.trace.writer_record import FILE_NAME
from megatron_fwpkm.hf.generation import Sampling, continue_text, remember
from tests.hf.builders import small_model

from .in_process import ROOT, Done, run_tool
from .test_generate_text import DOCUMENT, folder, words  # noqa: F401  (a fixture)

QUESTION = "w05 w06 w07"
Chat = Callable[..., Done]


@pytest.fixture
def chat(
    folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Chat:
    """Runs the tool in the folder of the test with lines on standard input; the rest are flags."""
    (tmp_path / "book.txt").write_text(DOCUMENT)
    monkeypatch.chdir(tmp_path)

    def run(lines: str, *flags: str) -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return run_tool(capsys, "chat", "--model", folder, "--max-new-tokens", 6, *flags)

    return run


def new_session(**changes: Any) -> Session:
    """With a memory that has read nothing; changes are those of the model's configuration."""
    return Session(small_model(dtype=torch.float32, **changes), words(), Sampling(6))


def test_a_book_is_read_once_and_asked_later(chat: Chat) -> None:
    model, tokenizer = small_model(dtype=torch.float32), words()
    cache = model.new_cache()
    remember(model, tokenizer, DOCUMENT, cache)
    model.memory_mode = "frozen"
    expected = continue_text(model, tokenizer, QUESTION, Sampling(6), cache)
    first = chat(f"{QUESTION}\n/show\n/save kept\n", "--read", "book.txt")
    answer, *shown = first.stdout.splitlines()
    assert first.returncode == 0 and answer.split() == expected.split()
    assert len(shown) == 6 and "book.txt, token " in first.stdout
    assert "read book.txt: 50 tokens in " in first.stderr and "saved to kept\n" in first.stderr
    later = chat(f"{QUESTION}\n/show\n/quit\n{QUESTION}\n", "--memory", "kept")
    assert later == (0, first.stdout, "")


@pytest.mark.slow
def test_another_process_answers_the_same(chat: Chat, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    first = chat(f"{QUESTION}\n/show\n/save kept\n", "--read", "book.txt")
    command = [sys.executable, ROOT / "tools" / "chat.py", "--model", folder, "--memory", "kept", "--max-new-tokens", 6]
    done = subprocess.run(
        list(map(str, command)), input=f"{QUESTION}\n/show\n", cwd=tmp_path, capture_output=True,
        text=True, timeout=110, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, first.stdout, "")


def test_memories_are_forked_left_and_forgotten(chat: Chat) -> None:
    lines = [
        QUESTION, "/read book.txt", QUESTION, "/fork", "/read book.txt", QUESTION, "/switch main", QUESTION,
        "/memory off", QUESTION, "/memory on", QUESTION, QUESTION, "/forget", "/memory frozen", QUESTION,
    ]  # fmt: skip
    done = chat("\n".join(lines) + "\n")
    empty, once, twice, back, off, on, again, forgotten = done.stdout.splitlines()
    assert empty == off == forgotten and once == back
    assert len({empty, once, twice}) == 3 and on != again
    assert "fork1 goes on from main; /switch main goes back\nread book.txt" in done.stderr


def test_errors_are_one_line_and_the_session_goes_on(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    wrong = {
        "/show": "nothing has been asked yet",
        "/nonsense": "there is no command /nonsense; /help lists them",
        "/read": "usage: /read FILE",
        "/read absent.txt": "absent.txt: No such file or directory",
        "/read empty.txt": "empty.txt is empty",
        "/load absent": "does not exist",
        "/save": "usage: /save FOLDER",
        "/switch other": "there is no memory 'other'; there are main",
        "/fork main": "there is a memory main already; /switch main goes there",
        "/memory maybe": "/memory maybe: choose from on, frozen, off; it is frozen",
    }
    done = chat("\n".join(wrong) + f"\n\n/help\n{QUESTION}\n/memory off\n{QUESTION}\n/show\n")
    assert done.returncode == 1 and done.stdout.startswith(HELP) and len(done.stdout.splitlines()) > 12
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for line, message in zip(told, [*wrong.values(), "the memory was off"], strict=True):
        assert message in line


def test_wrong_flags_are_named_before_a_model_is_loaded(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = chat("", "--memory", "absent")
    assert absent.returncode == 1 and "does not exist" in absent.stderr
    monkeypatch.setattr(export, "load_for_text", lambda *arguments: pytest.fail("the model was loaded"))
    assert chat("", "--read", "absent.txt") == (1, "", "error: absent.txt: No such file or directory\n")
    usage = chat("", "--temperature", "-1")
    assert usage.returncode == 2 and "--temperature -1.0 must be at least 0" in usage.stderr


def test_reading_in_segments_is_reading_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts, seen = new_session(), new_session(), []
    whole.read("book", DOCUMENT)
    monkeypatch.setattr(session, "SEGMENT", 16)
    assert parts.read("book", DOCUMENT, lambda done, total: seen.append((done, total))) == 50
    assert seen == [(16, 50), (32, 50), (48, 50), (50, 50)]
    assert parts.ask(QUESTION) == whole.ask(QUESTION)
    assert parts.memory.record is not None and whole.memory.record is not None
    for one, other in zip(parts.memory.record.layers[1], whole.memory.record.layers[1], strict=True):
        torch.testing.assert_close(one, other)
    assert int(parts.memory.record.layers[1].tokens.max()) == 48  # the last token has no target


@pytest.mark.parametrize(("kind", "steps"), [("fwpkm", [50]), ("fwmlp", [16, 32, 48, 50])])
def test_a_text_is_read_at_once_only_where_its_cuts_matter(
    monkeypatch: pytest.MonkeyPatch, kind: str, steps: list[int]
) -> None:
    monkeypatch.setattr(session, "SEGMENT", 16)
    chatting, seen = new_session(**{f"{kind}_write_scale": "official"}), list[int]()  # without layers of kind fwmlp
    chatting.read("book", DOCUMENT, lambda done, _: seen.append(done))
    assert seen == steps


def test_show_finds_the_place_that_was_asked_for() -> None:
    """A question that is the beginning of a document reads the slots which that beginning wrote."""
    chat, tokens = new_session(fwpkm_num_subkeys=32), DOCUMENT.split()
    chat.read("other", " ".join(reversed(tokens[:8])))
    chat.read("book", " ".join(tokens[:8]))
    chat.ask(" ".join(tokens[:4]))
    line = sources_of(chat.answer, chat.tokenizer, 1)[0]
    assert f"book, token 4: ... {' '.join(tokens[:4])} [{tokens[4]}] {' '.join(tokens[5:8])} ..." in line


def test_what_was_said_is_recorded_where_it_is_written(tmp_path: Path) -> None:
    chat = new_session()
    chat.ask(QUESTION)
    assert chat.memory.record is not None and chat.memory.record.names == []
    chat.mode = "on"
    chat.ask(QUESTION)
    assert chat.memory.record.names == [f"question {QUESTION!r}"]
    chat.save(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    chat.load(tmp_path)
    chat.read("book", DOCUMENT)
    chat.ask(QUESTION)
    with pytest.raises(ValueError, match="it was saved without one"):
        sources_of(chat.answer, chat.tokenizer, 1)
    new_session().save(tmp_path)  # whose record must not stay beside a memory without one
    chat.save(tmp_path)
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize("line", [QUESTION, "/read book.txt"])
def test_ctrl_c_leaves_the_memory_as_it_was(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "book.txt").write_text(DOCUMENT)
    monkeypatch.chdir(tmp_path)
    chat, calls = new_session(), []
    chat.mode = "on"
    expected = chat.memory.clone()

    def interrupt(*arguments: object) -> None:
        calls.append(arguments)
        raise KeyboardInterrupt

    handle = chat.model.lm_head.register_forward_hook(interrupt)
    inner = chat.model.model.register_forward_hook(interrupt)
    run_lines(chat, [line])
    handle.remove()
    inner.remove()
    assert calls and capsys.readouterr().err.endswith("\nstopped; the memory is as it was before\n")
    assert chat.memory.cache.nbytes == expected.cache.nbytes and chat.answer is None
    assert chat.ask(QUESTION) == new_session().ask(QUESTION)


def test_lines_that_fail_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By which a script sees that its answers came from another memory."""
    (tmp_path / "config.json").touch()
    lines = ["/load none", "/memory", f"/save {tmp_path}", "/nothing", "/quit now", "/load none"]
    assert run_lines(new_session(), lines) == 3
    said = capsys.readouterr().err.splitlines()
    assert said[1:3] == ["the memory is frozen", f"error: {tmp_path} is the folder of a model; give another one"]


def test_every_command_is_in_the_help() -> None:
    assert {line.split()[0] for line in HELP.splitlines()[1:]} == {*commands.COMMANDS, "/quit"}
