"""The paper's configuration is read by the program's own parser and has the paper's sizes."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.launch.conftest import ROOT

PAPER = "examples/paper/base_112m.yaml"


def test_sizes_of_the_paper():
    from megatron_fwpkm.config.loading import parse_pretrain

    resolved = parse_pretrain(["--config", str(ROOT / PAPER)])
    config = resolved.config
    model, memory, training = config.model, config.fwpkm, config.training
    assert (model.num_layers, model.hidden_size, model.ffn_hidden_size, model.seq_length) == (12, 768, 2304, 4096)
    assert (model.num_attention_heads, model.num_query_groups, model.kv_channels) == (12, 4, 64)
    assert model.rotary_percent == 0.25
    assert memory.layer_numbers == (3, 7, 11)
    assert (memory.num_heads, memory.topk, memory.num_subkeys) == (1, 8, 512)
    assert (memory.key_dim, memory.value_dim) == (512, 512)
    assert (memory.chunk_size, memory.lookahead, memory.reset, memory.boundary) == (512, 1, "never", "drop")
    assert (training.global_batch_size, training.train_iters) == (128, 20000)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.min_lr, optimizer.lr_warmup_iters, optimizer.weight_decay) == (1e-3, 1e-4, 100, 0.1)
    assert PAPER.split("/")[-1] in resolved.value_sources["--lr"]


def test_dry_run_shows_the_layers_without_a_gpu():
    arguments = ["--config", PAPER, "--data-path", "corpus_text", "--tokenizer-model", "mistral.model", "--dry-run"]
    run = subprocess.run(
        [sys.executable, "pretrain.py", *arguments],
        cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "32000" in run.stdout.replace(",", "")
