"""A corpus prepared on a Ray cluster of this machine: killed tasks go on, failed ones are named, bytes are exact."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.data.preprocess.on_ray import preprocess_on_ray
from megatron_fwpkm.data.preprocess.preprocess_options import PreprocessOptions

from ..conftest import ROOT, novel

LIMIT = 180


def tool(folder: Path, *arguments: Any) -> list[str]:
    """The command with which a user prepares `folder`/a.txt."""
    return [
        sys.executable, str(ROOT / "tools/preprocess_data.py"), "--input", "a.txt", "--txt-documents", "line",
        "--on-error", "skip", "--tokenizer-model", str(folder / "tokenizer.model"), "--append-eod",
        "--accelerator", "none", *map(str, arguments),
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, tokenizer_file: Path) -> Path:
    """A text that takes a shard some seconds, and its tokenizer."""
    (tmp_path / "a.txt").write_text(novel() * 40)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    return tmp_path


def tasks() -> Iterator[psutil.Process]:
    """Processes of Ray that make a shard now."""
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::make_shard"):
            yield process


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_a_killed_task_is_continued_and_the_result_is_that_of_one_machine(folder: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    settings: dict[str, Any] = {"cwd": folder, "text": True, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    subprocess.run(tool(folder, "--output-prefix", "one"), check=True, timeout=LIMIT, **settings)
    command = tool(folder, "--output-prefix", "ray", "--num-shards", 3, "--ray-address", "local", "--shard-retries", 1)
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)
    end = time.monotonic() + LIMIT
    # Its first part is being written: not yet published, and too long to be over before the signal.
    while not (found := [task for task in tasks() if list(folder.glob("ray-00000-of-*.bin.partial"))]):
        assert time.monotonic() < end and run.poll() is None, run.communicate()
        time.sleep(0.02)
    killed = found[0].pid
    found[0].kill()
    output, errors = run.communicate(timeout=LIMIT)
    assert run.returncode == 0, errors
    assert not psutil.pid_exists(killed) and "(3 of 3 shards ended)" in errors
    for suffix in (".bin", ".idx"):
        assert (folder / f"ray_text_document{suffix}").read_bytes() == (
            folder / f"one_text_document{suffix}"
        ).read_bytes()
    assert "ray_text_document" in output
    # A second time: refused, done again with --resume (which has nothing to do but to look), and a bad shard is named.
    again = subprocess.run(command, capture_output=True, timeout=LIMIT, **settings)
    assert again.returncode == 1 and "already exists" in again.stderr
    bad = [*command[: command.index("--on-error")], *command[command.index("--on-error") + 2 :], "--overwrite"]
    failing = subprocess.run(bad, capture_output=True, timeout=LIMIT, **settings)
    assert failing.returncode == 1
    assert "error: 3 of 3 shards failed: shard 0: " in failing.stderr and ": blank line" in failing.stderr


@pytest.fixture
def options(tmp_path: Path, tokenizer_file: Path) -> PreprocessOptions:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    return PreprocessOptions(
        (str(tmp_path / "a.txt"),), str(tmp_path / "out"), DataConfig(tokenizer_model=str(tokenizer_file)),
        num_shards=2, ray_address="local",
    )  # fmt: skip


def test_left_over_shards_are_refused_before_ray_starts(options: PreprocessOptions, tmp_path: Path) -> None:
    (tmp_path / "out-00001-of-00002_journal.json").write_text("{}")
    with pytest.raises(ValueError, match="out-00001-of-00002_journal.json belongs to an earlier run: --resume"):
        preprocess_on_ray(options)
    (tmp_path / "out_text_document.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="out_text_document.bin already exists"):
        preprocess_on_ray(options)


def test_a_pipe_has_no_shards(options: PreprocessOptions) -> None:
    with pytest.raises(ValueError, match="--input - cannot be split into shards"):
        preprocess_on_ray(replace(options, inputs=("-",)))


def test_a_cluster_that_does_not_answer_is_an_error(
    options: PreprocessOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise ConnectionError("nobody there\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ValueError, match=r"--ray-address local: no Ray cluster answers \(nobody there\); start one"):
        preprocess_on_ray(options)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ValueError, match=rf"--ray-address {address} cannot be reached \(.*refused\); give the address"):
        preprocess_on_ray(replace(options, ray_address=address))
