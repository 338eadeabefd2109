"""Reading needs no process group; stored tensors come back whole, waiting tokens too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_fwpkm.checkpoint.checkpoint_reader import read_checkpoint
from megatron_fwpkm.checkpoint.manager import CheckpointManager
from megatron_fwpkm.checkpoint.record import Layout, RunRecord
from megatron_fwpkm.config.loading import parse_pretrain

LAYOUT = Layout(1, 1, 1, 1, False, False)
SLOW = {"embedding.word_embeddings.weight": torch.randn(8, 4), "decoder.layers.1.memory.gate_proj.bias": torch.ones(1)}
FAST = {
    "layer2/replica0/sub_keys": torch.randn(1, 2, 4, 3),
    "layer2/replica0/values": torch.randn(16, 8),
    "layer2/replica1/sub_keys": torch.zeros(1, 2, 4, 3),
    "layer2/replica1/values": torch.zeros(16, 8),
    "layer2/replica0/pending/queries": torch.randn(1, 3, 1, 6),
    "layer2/replica0/pending/targets": torch.randn(1, 3, 8),
}


def write(root: Path, fast: dict[str, torch.Tensor], tokenizer: str | None = "tokenizer.model") -> Path:
    record = RunRecord(5, 10, 320, LAYOUT, 7, 8, "abc", tokenizer)
    with CheckpointManager(root, keep_last=1).publish(5, record) as folder:
        dcp.save({**SLOW, "optimizer.state.exp_avg.x": torch.ones(3)}, checkpoint_id=folder / "model")
        dcp.save(fast, checkpoint_id=folder / "fast_weights")
        resolved = parse_pretrain(["--fwpkm-layer-numbers", "2", "--fwpkm-num-subkeys", "4"])
        (folder / "config.yaml").write_text(resolved.to_yaml())
        (folder / "tokenizer.model").write_text("pieces")
    return root / "iter_0000005"


@pytest.mark.filterwarnings("ignore:torch.distributed is.*to save in")
def test_everything_comes_back_whole(tmp_path: Path) -> None:
    folder = write(tmp_path, FAST)
    contents = read_checkpoint(str(tmp_path))
    assert (contents.path, contents.iteration) == (folder, 5)
    assert (contents.vocab_size, contents.padded_vocab_size) == (7, 8)
    assert contents.config.fwpkm.layer_numbers == (2,)
    assert contents.tokenizer_path == folder / "tokenizer.model"
    assert contents.slow.keys() == SLOW.keys()  # without the optimizer
    assert all(torch.equal(contents.slow[name], SLOW[name]) for name in SLOW)
    state = contents.fast[2]
    assert torch.equal(state.tables["values"], FAST["layer2/replica0/values"])
    assert state.pending is not None and state.pending.gates is None
    assert torch.equal(state.pending.targets, FAST["layer2/replica0/pending/targets"])


@pytest.mark.filterwarnings("ignore:torch.distributed is.*to save in")
def test_a_missing_memory_is_named(tmp_path: Path) -> None:
    write(tmp_path, {k.replace("layer2", "layer3"): v for k, v in FAST.items()})
    with pytest.raises(ValueError, match="fast_weights contains no memory for layer 2"):
        read_checkpoint(tmp_path)


def test_a_missing_configuration_is_a_torn_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path, FAST)
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match="iter_0000005 is incomplete: config.yaml is missing"):
        read_checkpoint(folder)


def test_reading_imports_no_megatron() -> None:
    """Export and evaluation read checkpoints where Megatron may not be installed."""
    code = "import sys, megatron_fwpkm.checkpoint.checkpoint_reader; sys.exit('megatron.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
