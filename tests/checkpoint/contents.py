"""Contents of a checkpoint without a run: a freshly built Megatron model with weights and tables that matter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from megatron_fwpkm.checkpoint.checkpoint_reader import CheckpointContents
from megatron_fwpkm.checkpoint.manager import CheckpointManager
from megatron_fwpkm.checkpoint.record import Layout, RunRecord
from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.models.builder import build_model, memory_layers
from megatron_fwpkm.ops import FastWeightState


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
        state = layer.fast_weights()
        draw = [torch.randn(table.shape, generator=generator) for table in (state.sub_keys, state.values)]
        values = (state.values + 0.5 * draw[1]).to(state.values.dtype)
        fast[layer.layer_number] = FastWeightState(state.sub_keys + 0.05 * draw[0], values)
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
        f"layer{number}/replica0/{table}": getattr(state, table)
        for number, state in contents.fast.items()
        for table in ("sub_keys", "values")
    }
    with CheckpointManager(root, keep_last=1).publish(7, record) as folder:
        dcp.save(contents.slow, checkpoint_id=folder / "model")
        dcp.save(fast, checkpoint_id=folder / "fast_weights")
        (folder / "config.yaml").write_text(resolved.to_yaml())
        if tokenizer is not None and copied is not None:
            shutil.copyfile(tokenizer, folder / copied)
    return contents
