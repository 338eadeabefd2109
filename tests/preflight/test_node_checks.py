"""What a node finds wrong with itself, and what it leaves behind: nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.distributed.launch_variables import Launch
from megatron_fwpkm.preflight import node_checks
from megatron_fwpkm.preflight.node_checks import NodeChecks, NodeReport, data_prefixes, fingerprint
from megatron_fwpkm.preflight.shared_folder import leave_token, see_token
from tests.test_pretrain import flags, write_dataset

LAUNCH = Launch(0, 1, 0, 1, "", 0, store_in_agent=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "numbers")


def look(dataset: str, processes: int = 1, **changes: Any) -> NodeReport:
    return NodeChecks(parse_pretrain(flags(dataset, **changes)).config, LAUNCH, processes, processes).run()


def said(report: NodeReport) -> list[str]:
    return [str(trouble) for trouble in report.troubles]


def test_a_sound_node(dataset: str, tmp_path: Path) -> None:
    report = look(dataset, save=tmp_path / "runs" / "one")
    assert said(report) == []
    assert report.save_place == str(tmp_path) and list(tmp_path.iterdir()) == []
    assert report.free[str(tmp_path)] > 0
    assert report.files.keys() == {f"{dataset}.bin", f"{dataset}.idx"}


def test_what_is_missing_is_named(dataset: str, tmp_path: Path) -> None:
    gone = tmp_path / "none.model"
    missing = {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": gone, "vocab_size": None}
    (tokenizer,) = said(look(dataset, **missing))
    assert "none.model does not exist" in tokenizer and "copy or mount it on this node" in tokenizer
    (data,) = said(look(str(tmp_path / "nothing")))
    assert f"the dataset {tmp_path}/nothing cannot be read" in data


def test_a_configuration_that_pretrain_would_refuse(dataset: str) -> None:
    assert any("--global-batch-size" in line for line in said(look(dataset, processes=3)))
    assert any("gdm is not a token mixer" in line for line in said(look(dataset, layer_pattern="gdm")))


def test_a_disk_that_is_full_or_read_only(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=5 * 2**20))
    full = said(look(dataset, save=tmp_path))
    assert f"{tmp_path}, for --save {tmp_path}, has only 5 MiB free: make room" in full[0] and len(full) == 2
    monkeypatch.undo()

    def refuse(folder: Path) -> None:
        raise OSError(30, "Read-only file system", str(folder))

    monkeypatch.setattr(node_checks, "write_and_rename", refuse)
    assert "cannot be written (Read-only file system)" in said(look(dataset, save=tmp_path))[0]


def test_a_disk_too_small_for_the_checkpoints(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small ones of a test fit everywhere, so a checkpoint counts for 2 GiB here; three are kept at once."""
    monkeypatch.setattr(node_checks, "checkpoint_bytes", lambda *sizes: SimpleNamespace(total=2 * 2**30))
    chosen = {"save": tmp_path, "train_iters": 9, "save_interval": 3}

    def with_free(gib: float) -> list[tuple[str, bool]]:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=int(gib * 2**30)))
        return [(str(trouble), trouble.fatal) for trouble in look(dataset, **chosen).troubles]

    ((one, one_is_fatal),) = with_free(1.5)
    assert one_is_fatal and f"--save {tmp_path} needs 2.0 GiB for a checkpoint, and 1.5 GiB are free: make room" in one
    ((all_of_them, all_are_fatal),) = with_free(5)
    assert not all_are_fatal and "needs 6.0 GiB for the 3 checkpoints that the run keeps at once" in all_of_them
    assert with_free(6) == []


def test_gpus(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="H100", total_memory=80 * 2**30)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: gpu)
    monkeypatch.setattr(node_checks, "_nvidia_smi", lambda: [["H100", "81559", "40000", "550.54"]])
    monkeypatch.setattr(node_checks, "check_installed", lambda config, world: None)
    report = look(dataset, processes=2)
    assert report.gpus == ["H100 80 GiB"] and report.driver == "550.54"
    few, used = said(report)
    assert few.startswith("2 processes for 1 GPUs") and used.startswith("GPU 0 (H100) has 40000 of 81559 MiB in use")
    assert [trouble.fatal for trouble in report.troubles] == [True, False]


def test_every_dataset_of_a_blend_is_read() -> None:
    blend = ["--train-data-path", "0.5", "a", "0.5", "b", "--valid-data-path", "c"]
    assert data_prefixes(parse_pretrain(blend).config) == ["a", "b", "c"]


def test_a_fingerprint_sees_size_beginning_and_end(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", set()
    whole = bytes(9 * 2**20)
    for text in (whole, whole + b"0", b"1" + whole[1:], whole[:-1] + b"1"):
        path.write_bytes(text)
        seen.add(fingerprint(path))
    assert len(seen) == 4


def test_a_token_is_seen_in_the_same_folder_only(tmp_path: Path) -> None:
    token = leave_token(tmp_path)
    assert token is not None
    assert see_token(tmp_path, token.name, 0.1)
    (tmp_path / "other").mkdir()
    assert not see_token(tmp_path / "other", token.name, 0.1)
    assert leave_token(tmp_path / "none") is None
