"""tools/generate_text.py as a user runs it, and the functions behind it."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_fwpkm.conversion import export
from megatron_fwpkm.hf.generation import Sampling, continue_text, read_text, remember
from tests.hf.builders import VOCABULARY, small_model

from .in_process import ROOT, run_tool


def words() -> PreTrainedTokenizerFast:
    """A word for every id: w00, w01, ..."""
    backend = Tokenizer(models.WordLevel({f"w{token:02}": token for token in range(VOCABULARY)}, unk_token="w00"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w02", unk_token="w00")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a tokenizer, as an export is laid out."""
    path = tmp_path_factory.mktemp("hf")
    model = small_model(dtype=torch.float32)
    model.generation_config.update(eos_token_id=2, pad_token_id=2)
    model.save_pretrained(path)
    words().save_pretrained(path)
    return path


DOCUMENT = " ".join(f"w{3 + (7 * position) % 60:02}" for position in range(50))


def test_it_continues_what_it_remembers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same text as the functions give, whichever way the prompt comes in."""
    (tmp_path / "document.txt.gz").write_bytes(gzip.compress(DOCUMENT.encode()))
    (tmp_path / "prompt.txt").write_text("w05 w06 w07")
    model, tokenizer = small_model(dtype=torch.float32), words()
    cache = model.new_cache()
    assert remember(model, tokenizer, DOCUMENT, cache) == 50
    expected = continue_text(model, tokenizer, "w05 w06 w07", Sampling(6), cache)
    plain = continue_text(model, tokenizer, "w05 w06 w07", Sampling(6))
    assert expected and plain and expected != plain
    common = ("--model", folder, "--max-new-tokens", 6)
    arguments = (*common, "--remember", tmp_path / "document.txt.gz", "--prompt", "w05 w06 w07")
    command = [sys.executable, ROOT / "tools" / "generate_text.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=110)
    assert (told.returncode, told.stdout.split()) == (0, expected.split()), told.stderr
    assert told.stderr == f"remembered {tmp_path / 'document.txt.gz'}: 50 tokens\n"
    from_file = run_tool(capsys, "generate_text", *common, "--prompt-file", tmp_path / "prompt.txt")
    assert (from_file.stdout.split(), from_file.stderr) == (plain.split(), "")
    monkeypatch.setattr(sys, "stdin", io.StringIO("w05 w06 w07"))
    assert run_tool(capsys, "generate_text", *common) == from_file


def test_wrong_input_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    message = "error: the prompt is empty; give --prompt, --prompt-file or text on standard input\n"
    assert run_tool(capsys, "generate_text", "--model", folder) == (1, "", message)
    # Inputs are looked at before a model is loaded, whichever it is.
    monkeypatch.setattr(export, "load_for_text", lambda *arguments: pytest.fail("the model was loaded"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run_tool(capsys, "generate_text", "--model", folder) == (1, "", message)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for flags in (["--prompt-file"], ["--prompt", "a", "--remember"]):
        absent = run_tool(capsys, "generate_text", "--model", folder, *flags, tmp_path / "absent.txt")
        assert absent == (1, "", f"error: {tmp_path / 'absent.txt'}: No such file or directory\n")
        damaged = run_tool(capsys, "generate_text", "--model", folder, *flags, tmp_path / "bytes")
        assert damaged.returncode == 1 and "bytes is not UTF-8 text" in damaged.stderr
    for arguments, message in (
        (("--temperature", "-1"), "--temperature -1.0 must be at least 0"),
        (("--memory", "off", "--remember", "x"), "--memory off does not read what --remember writes"),
        (("--prompt", "a", "--prompt-file", "b"), "--prompt-file and --prompt are mutually exclusive: remove one"),
        (("--top-p", "2"), "2 must be between 0 and 1"),
    ):
        usage = run_tool(capsys, "generate_text", "--model", folder, *arguments)
        assert usage.returncode == 2 and message in usage.stderr


def test_frozen_answers_leave_no_trace() -> None:
    model, tokenizer = small_model(), words()
    cache = model.new_cache()
    remember(model, tokenizer, DOCUMENT, cache)
    written = cache.memory[1].state.whole_values().clone()
    model.memory_mode = "frozen"
    first = continue_text(model, tokenizer, "w05 w06 w07", Sampling(20), cache)
    assert torch.equal(cache.memory[1].state.whole_values(), written) and cache.memory[1].state.num_pending == 0
    cache.end_text()
    assert continue_text(model, tokenizer, "w05 w06 w07", Sampling(20), cache) == first


def test_sampling() -> None:
    model, tokenizer = small_model(), words()
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(continue_text(model, tokenizer, "w05 w06", Sampling(15, temperature=1.5, top_k=20, top_p=0.9)))
    assert texts[0] == texts[1] != texts[2]
    assert Sampling(3).arguments() == {"max_new_tokens": 3, "repetition_penalty": 1.0, "do_sample": False}


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("täxt", encoding="utf-8")
    assert read_text(tmp_path / "plain") == "täxt"
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "torn").write_bytes(gzip.compress(b"text" * 100)[:-12])
    for name in ("bytes", "torn"):
        with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text \(plain or gzip\)"):
            read_text(tmp_path / name)
    with pytest.raises(ValueError, match="the text to remember is empty"):
        remember(small_model(), words(), "", small_model().new_cache())


def test_a_stray_word_is_answered_with_a_flag_of_this_tool_only(capsys):
    stray = run_tool(capsys, "generate_text", "--model", "folder", "--prompt", "a", "hello")
    assert stray.returncode == 2 and "unexpected argument 'hello': every option is a flag" in stray.stderr
    assert "--input" not in stray.stderr.partition("error:")[2]
