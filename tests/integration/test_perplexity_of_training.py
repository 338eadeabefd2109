"""The loss of documents by the training engine's evaluation is that of the perplexity evaluation, of checkpoint and
export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pretrain
from megatron_fwpkm.checkpoint.manager import resolve_checkpoint
from megatron_fwpkm.checkpoint.record import read_record
from megatron_fwpkm.checkpoint.saved_config import read_saved_config
from megatron_fwpkm.config.cli import run_cli
from megatron_fwpkm.conversion.export import export
from megatron_fwpkm.data.indexed.indexed_format import IndexedWriter
from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.perplexity.perplexity_settings import PerplexitySettings
from megatron_fwpkm.evaluation.perplexity.run import measure_perplexity
from tests.checkpoint.contents import TINY_FLAGS
from tests.evaluation.topic_model import byte_tokenizer

LENGTH = 200
"""Of a sequence; it ends within a chunk of the memory."""


def write_documents(prefix: Path) -> np.ndarray:
    """Six documents that fill a sequence each, with the token that its last one predicts."""
    tokenizer = byte_tokenizer()
    documents = np.random.default_rng(0).integers(97, 123, (6, LENGTH + 1)).astype(np.uint16)
    with IndexedWriter(prefix, np.dtype("uint16")) as writer:
        writer.append(documents.tobytes(), np.full(6, LENGTH + 1))
        told = {"identity": tokenizer.identity, "type": tokenizer.kind, "vocab_size": tokenizer.vocab_size}
        writer.publish({"tokenizer": told})
    return documents.astype(np.int64)


def losses_of_training(run: Path, documents: np.ndarray) -> list[float]:
    """Of every document alone, from the initial memory."""
    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    checkpoint = resolve_checkpoint(run)
    config = read_saved_config(checkpoint)
    with megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, read_record(checkpoint).vocab_size, world.device)
        engine.load(checkpoint, weights_only=True)
        found = []
        for document in torch.from_numpy(documents):
            batch = {
                "tokens": document[None, :-1],
                "labels": document[None, 1:],
                "loss_mask": torch.ones(1, LENGTH),
                "position_ids": torch.arange(LENGTH)[None],
                "document_starts": torch.arange(LENGTH)[None] == 0,
            }
            losses = engine.evaluate(iter([batch]), 1)
            assert losses is not None
            found.append(losses.lm_loss)
    return found


@pytest.mark.slow
def test_training_and_evaluation_agree(tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "data")
    flags = (
        f"--tokenizer-type ByteLevelTokenizer --data-path {tmp_path / 'data'} --split 100,0,0 --train-iters 3 "
        f"--eval-iters 0 --lr 0.01 --fwpkm-reset step --seq-length {LENGTH} --save {tmp_path / 'run'} --num-threads 1"
    )
    assert run_cli(pretrain.main, [*TINY_FLAGS, *flags.split()]) == 0
    torch.use_deterministic_algorithms(False)
    trained = losses_of_training(tmp_path / "run", documents)
    export(str(tmp_path / "run"), str(tmp_path / "hf"))
    # The export has its bytes as tokenizer.json, which is another tokenizer to the description of the dataset.
    (tmp_path / "data.json").unlink()
    for place in ("run", "hf"):
        settings = PerplexitySettings(str(tmp_path / place), data_path=(str(tmp_path / "data"),), reading="training")
        results = measure_perplexity(settings, RunOptions(tmp_path / f"out_{place}", device="cpu"))
        rows = [row.loss.mean for row in results.documents.rows if (row.condition, row.versus) == ("on", None)]
        assert rows == pytest.approx(trained, abs=1e-4)
        assert results.find("on").loss.mean == pytest.approx(sum(trained) / len(trained), abs=1e-4)
        gap = results.find("on", "off").loss.mean
        assert abs(gap) > 1e-3, "the memory changes nothing here, so that the test could not fail"
