"""Contents of a checkpoint without a run: a freshly built Megatron model with weights and tables that matter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from megatron_fwpkm.checkpoint.checkpoint_reader import CheckpointContents, StoredMemory
from megatron_fwpkm.checkpoint.manager import CheckpointManager
from megatron_fwpkm.checkpoint.record import Layout, RunRecord
from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.models.builder import build_model, memory_layers


def contents_of(
    config: PretrainConfig, vocab_size: int, padded: int, tokenizer: Path | None = None
) -> CheckpointContents:
    """Random weights under Megatron's names, and a written memory in every layer that has one."""
    model = build_model(config, padded)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15, generator=generator)
    slow = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    fast = {}
    for layer in memory_layers(model):
        tables = layer.fast_weights().tables()
        draws = {name: torch.randn(table.shape, generator=generator) for name, table in tables.items()}
        moved = {n: (t + (0.5 if n == "values" else 0.05) * draws[n]).to(t.dtype) for n, t in tables.items()}
        fast[layer.layer_number] = StoredMemory(moved, None)
    return CheckpointContents(
        path=Path("checkpoint/iter_0000007"),
        iteration=7,
        config=config,
        vocab_size=vocab_size,
        padded_vocab_size=padded,
        slow=slow,
        fast=fast,
        tokenizer_path=tokenizer,
    )


def in_memory(contents: CheckpointContents) -> CheckpointContents:
    """The contents as they are now, whatever is done to the files later."""
    fast = {number: StoredMemory(dict(memory.tables), memory.pending) for number, memory in contents.fast.items()}
    return replace(contents, slow=dict(contents.slow), fast=fast)


TINY_FLAGS = (
    "--num-layers 2 --hidden-size 32 --ffn-hidden-size 48 --num-attention-heads 4 --num-query-groups 2 --seq-length 48 "
    "--layer-pattern swa --window-size 15,0 --fwpkm-layer-numbers 2 --fwpkm-num-subkeys 8 --fwpkm-key-dim 16 "
    "--fwpkm-value-dim 16 --fwpkm-topk 4 --fwpkm-chunk-size 16 --fwpkm-reset never"
).split()


def write_checkpoint(
    root: Path, vocab_size: int, padded: int, tokenizer: Path | None, flags: Sequence[str] = ()
) -> CheckpointContents:
    """A checkpoint folder on disk, as a run of TINY_FLAGS with --save ROOT would leave it; returns its contents."""
    resolved = parse_pretrain([*TINY_FLAGS, *flags])
    contents = contents_of(resolved.config, vocab_size, padded, tokenizer)
    copied = None if tokenizer is None else f"tokenizer{tokenizer.suffix}"
    record = RunRecord(7, 14, 672, Layout(1, 1, 1, 1, False, False), vocab_size, padded, "hash", copied)
    fast = {
        f"layer{number}/replica0/{name}": table
        for number, memory in contents.fast.items()
        for name, table in memory.tables.items()
    }
    with CheckpointManager(root, keep_last=1).publish(7, record) as folder:
        dcp.save(contents.slow, checkpoint_id=folder / "model")
        dcp.save(fast, checkpoint_id=folder / "fast_weights")
        (folder / "config.yaml").write_text(resolved.to_yaml())
        if tokenizer is not None and copied is not None:
            shutil.copyfile(tokenizer, folder / copied)
    return contents
