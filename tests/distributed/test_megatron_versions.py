"""The differences between releases of megatron-core: what the other rooms get is the same under each of them."""

from __future__ import annotations

import importlib.metadata
import logging
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.transformer import transformer_block
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_fwpkm.distributed import megatron_versions


def test_another_release_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.17.0")
    with pytest.warns(UserWarning, match=r"megatron-core 0\.17\.0 is installed but this was written for 0\.16\.1 and "):
        megatron_versions.warn_of_other_release("this")


def test_other_blocks_keep_megatrons_recompute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours runs the layers of the blocks that it was given, called as Megatron calls it."""
    inputs = {"hidden_states": torch.ones(2), "attention_mask": None}
    more: dict[str, Any] = {"extract_layer_indices": set(), "layer_offset": 0}
    ours, other = SimpleNamespace(), SimpleNamespace()

    def doubled(block: Any, hidden_states: torch.Tensor, attention_mask: None) -> torch.Tensor:
        assert block is ours
        return 2 * hidden_states

    if hasattr(transformer_block.TransformerBlock, "_checkpointed_forward"):
        megatron_versions.replace_recompute(ours, doubled)
        assert ours._checkpointed_forward(**inputs).tolist() == [2, 2]
        assert not vars(other)
        return
    monkeypatch.setattr(transformer_block, "checkpointed_forward", lambda block, **inputs: (block, inputs))
    for _ in range(2):  # replaced once
        megatron_versions.replace_recompute(ours, doubled)
    assert transformer_block.checkpointed_forward(ours, **inputs, **more).tolist() == [2, 2]
    assert transformer_block.checkpointed_forward(other, **inputs, **more) == (other, inputs | more)


def test_advice_to_megatrons_developers_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    megatron_versions.silence_notices()
    for name, texts in megatron_versions._NOTICES.items():
        logging.getLogger(name).warning("%s", "a loss of nan")
        for text in (texts,) if isinstance(texts, str) else texts:
            logging.getLogger(name).warning(f"{text} and more")
    assert {record.getMessage() for record in caplog.records} == {"a loss of nan"}


def test_no_module_is_for_cuda_graphs(recwarn: pytest.WarningsRecorder) -> None:
    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, **megatron_versions.no_cuda_graphs()
    )
    assert not [str(warning.message) for warning in recwarn if "scope" in str(warning.message)]
    assert next(value for name, value in vars(config).items() if name.startswith("cuda_graph_") and value == []) == []


@pytest.mark.slow
def test_a_name_that_is_read_without_transformer_engine_exists() -> None:
    program = (
        "from megatron.core.transformer.moe import moe_utils as m; from megatron_fwpkm.distributed import "
        "megatron_versions; had = hasattr(m, 'te_general_gemm'); megatron_versions.define_missing_names(); "
        "print(had, m.te_general_gemm)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout.endswith(" None\n"), run.stderr
    if run.stdout.startswith("True"):
        pytest.skip("this release defines the name itself")


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("failing", [True, False])
def test_a_writer_says_why_it_failed(
    files: int, failing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the repair a reader of the log learns the kind of the error, or nothing."""
    write_all = vars(FileSystemWriterAsync).get("write_preloaded_data_multithread")
    if write_all is None:
        pytest.skip("this release writes in processes, which say why they fail")
    monkeypatch.setattr(FileSystemWriterAsync, "write_preloaded_data_multithread", _original(write_all))
    names = ["no folder/0" if failing else "0", "1"][:files]  # the last is written by the caller, others by threads
    buckets = [(tmp_path / name, name, ([], [])) for name in names]

    def written() -> Any:
        results: Queue[Any] = Queue()
        FileSystemWriterAsync.write_preloaded_data_multithread([], False, 0, buckets, results)
        return results.get_nowait()

    if failing and files == 1:
        assert re.search("error: <class '.*Error'>$", str(written())), "if the release says more, the repair may go"
    elif failing:
        with pytest.raises(AssertionError, match="^<class '.*Error'>$"):
            written()
    megatron_versions.adapt_writers(lambda: None)
    if failing:
        assert isinstance(written(), FileNotFoundError)
    else:
        assert written() == {number: [] for number in range(files)}


def _original(write_all: Any) -> Any:
    """Megatron's own function, if another test of this process has had it adapted."""
    function = write_all.__func__
    return staticmethod(function.args[0] if isinstance(function, partial) else function)
