"""--dry-run: fast, without torch, exact in what can be exact, and near in what is estimated."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from megatron_fwpkm.config import FwPKMConfig, ModelConfig, ParallelConfig, PretrainConfig, TrainingConfig
from megatron_fwpkm.config.derived import num_parameters, padded_vocab_size, stage_parameters, table_bytes
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.training.dry_run import dry_run, format_bytes, vocabulary_size
from megatron_fwpkm.training.memory_estimate import (
    activation_bytes,
    estimate_memory,
    layer_bytes_per_token,
    undo_log_bytes,
)
from tests.distributed import run_distributed

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *"--dry-run --num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 256 --vocab-size 1000".split(),
    *"--fwpkm-layer-numbers 2 4 --fwpkm-num-subkeys 64 --fwpkm-key-dim 32 --fwpkm-value-dim 32".split(),
    *"--fwpkm-chunk-size 64".split(),
]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def shown(*words: str) -> str:
    console = Console(file=io.StringIO(), width=140, highlight=False)
    assert dry_run(parse_pretrain([*SMALL, *words]), console) == 0
    return console.file.getvalue()


def row(text: str, start: str) -> list[str]:
    """Words of the only line that begins with `start`, behind it."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.strip().removeprefix(start).split()


def test_options_with_their_origins(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lr: 2e-4\nsplit: '[x]'\n")
    with pytest.raises(ValueError, match="--split .x. is malformed"):
        shown("--config", str(path))
    path.write_text("lr: 2e-4\n")
    text = shown("--config", str(path))
    assert row(text, "--lr ")[0] == "0.0002" and row(text, "--lr ")[1].endswith("run.yaml:1")
    assert row(text, "--fwpkm-layer-numbers") == ["2", "4", "command", "line"]
    assert "--min-lr" not in text and "more options have their default" in text
    everything = shown("--config", str(path), "--dry-run-all")
    assert row(everything, "--min-lr") == ["0.0", "default"]
    assert row(everything, "--fwpkm-score") == ["idw", "default"]
    assert "more options have their default" not in everything


def test_layer_plan():
    text = shown("--window-size", "23,0", "23,0", "23,0", "-1,0", "--fwpkm-layer-numbers", "4")
    assert row(text, "1-3") == "0 - itself and 23 tokens before".split()
    assert row(text, "4 ") == "0 FwPKM 4,096 slots x 32, 1 head top-8, chunk 64 all tokens before".split()
    two = shown("--pipeline-model-parallel-size", "2", "--fwpkm-layer-numbers", "none")
    assert row(two, "1-2") == "0 - all tokens before".split() and row(two, "3-4") == "1 - all tokens before".split()


def test_parameters_and_tables():
    text, config = shown(), parse_pretrain(SMALL).config
    assert row(text, "slow weights")[0] == f"{num_parameters(config, 1000):,}"
    assert row(text, "fast weights (2 memories)")[0] == f"{2 * table_bytes(config) // 4:,}"
    halves = shown("--tensor-model-parallel-size", "2")
    whole, rank = (int(number.replace(",", "")) for number in row(halves, "mlp"))
    norms = 4 * 64
    assert rank == (whole - norms) // 2 + norms
    assert "fast weights" not in shown("--fwpkm-layer-numbers", "none")


def test_layout_and_batch(monkeypatch):
    text = shown("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2")
    assert "Layout: 4 processes = TP 2 x PP 2 x DP 1  (the least;" in text
    assert "stage 0" in text and "stage 1" in text
    monkeypatch.setenv("WORLD_SIZE", "8")
    text = shown("--global-batch-size", "32", "--micro-batch-size", "2", "--train-iters", "10")
    assert "Layout: 8 processes = TP 1 x PP 1 x DP 8\n" in text
    assert "32 sequences x 256 tokens = 8,192 tokens in 2 micro-batches per replica; 10 steps = 81,920 tokens" in text
    with pytest.raises(ValueError, match="--global-batch-size 12 is not a multiple of --micro-batch-size 1 times 8"):
        shown("--global-batch-size", "12")


def test_only_rank_0_prints(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert shown() == ""


def test_what_a_real_run_misses(tmp_path):
    text = shown()
    assert "Missing for a real run: --data-path, made by tools/preprocess_data.py" in text
    assert "Missing for a real run: --tokenizer-model\n" in text
    (tmp_path / "b.idx").touch()
    text = shown("--data-path", "0.5", f"{tmp_path}/a", "0.5", f"{tmp_path}/b", "--tokenizer-model", "absent.model")
    assert f"{tmp_path}/a.idx (--data-path)" in text and f"{tmp_path}/b.idx" not in text
    assert "Missing for a real run: --tokenizer-model absent.model" in text


def test_vocabulary():
    assert vocabulary_size(parse_pretrain(SMALL).config) == 1000
    null = ["--tokenizer-type", "NullTokenizer"]
    assert vocabulary_size(parse_pretrain([*SMALL, *null]).config) == 1001  # and the end of a document
    with pytest.raises(ValueError, match="--dry-run needs the size of the vocabulary: give --tokenizer-model or"):
        vocabulary_size(parse_pretrain(["--dry-run"]).config)
    with pytest.raises(ValueError, match="--tokenizer-model absent.model does not exist"):
        vocabulary_size(parse_pretrain(["--dry-run", "--tokenizer-model", "absent.model"]).config)


def test_a_configuration_that_could_not_run_is_refused():
    with pytest.raises(ValueError, match="--fwpkm-layer-numbers 9: the model has layers 1 to 4"):
        shown("--fwpkm-layer-numbers", "9")


def test_it_needs_no_torch_and_no_time():
    script = (
        "import sys; from megatron_fwpkm.config.loading import parse_pretrain\n"
        "from megatron_fwpkm.training.dry_run import dry_run\n"
        "assert dry_run(parse_pretrain(sys.argv[1:])) == 0\n"
        "assert not {'torch', 'megatron.core', 'transformers'} & set(sys.modules)"
    )
    arguments = ["--config", "examples/paper/base_112m.yaml", "--dry-run"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert run.returncode == 0, run.stderr
    assert row(run.stdout, "slow weights")[0] == "110,727,171"
    assert max(map(len, run.stdout.splitlines())) <= 130


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**52, "4096.0 TiB")]
)
def test_bytes(count, text):
    assert format_bytes(count) == text


# The estimate

BASE = PretrainConfig(
    model=ModelConfig(
        num_layers=2, hidden_size=64, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=192, seq_length=256,
        make_vocab_size_divisible_by=1,
    ),
    fwpkm=FwPKMConfig(layer_numbers=(1,), num_subkeys=64, key_dim=64, value_dim=64, chunk_size=64),
    training=TrainingConfig(micro_batch_size=2),
)  # fmt: skip


def test_stored_bytes_follow_from_the_parameters():
    parameters = num_parameters(BASE, 512)
    found = estimate_memory(BASE, 512, world_size=1)
    assert (found.weights, found.gradients, found.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert found.tables == table_bytes(BASE)
    half = estimate_memory(replace(BASE, training=replace(BASE.training, bf16=True)), 512, world_size=1)
    assert (half.weights, half.gradients, half.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters)
    sharded = replace(BASE, parallel=ParallelConfig(use_distributed_optimizer=True))
    assert estimate_memory(sharded, 512, world_size=4).optimizer == 2 * parameters
    assert found.total == sum(getattr(found, part) for part in type(found).__dataclass_fields__)


def test_bfloat16_tables_halve_table_and_log():
    fp32, bf16 = BASE, replace(BASE, fwpkm=replace(BASE.fwpkm, table_dtype="bf16"))
    sub_keys = 4 * BASE.fwpkm.num_heads * BASE.fwpkm.num_subkeys * BASE.fwpkm.key_dim
    assert 2 * (table_bytes(bf16) - sub_keys) == table_bytes(fp32) - sub_keys
    assert undo_log_bytes(fp32) - undo_log_bytes(bf16) == 4 * (2 * 64 * 8) * 2 * 64
    assert estimate_memory(bf16, 512, 1).tables == table_bytes(bf16)


def test_a_reset_costs_a_journal_and_a_pipeline_keeps_micro_batches():
    plain = estimate_memory(BASE, 512, 1)
    journal = estimate_memory(replace(BASE, fwpkm=replace(BASE.fwpkm, reset="step")), 512, 1)
    assert journal.undo_log - plain.undo_log == 4096 * (4 * 64 + 8)  # 2 * 256 tokens read 4,096 slots at most
    two = replace(
        BASE,
        parallel=ParallelConfig(pipeline_model_parallel_size=2),
        training=replace(BASE.training, global_batch_size=8),
    )
    assert estimate_memory(two, 512, 2, 0).activations == 2 * activation_bytes(two, 512, 0)
    assert estimate_memory(two, 512, 2, 1).activations == activation_bytes(two, 512, 1)


def test_context_parallel_ranks_share_tokens_and_tables():
    four = replace(BASE, parallel=ParallelConfig(context_parallel_size=4, use_distributed_optimizer=True))
    parameters = num_parameters(BASE, 512)
    found, alone = estimate_memory(four, 512, world_size=8), estimate_memory(BASE, 512, 1)
    assert found.weights == alone.weights and found.optimizer == parameters  # over two replicas of four ranks
    assert found.tables == alone.tables // 4
    assert undo_log_bytes(four) == 4 * (2 * 64 * 8) * (4 * 64 // 4 + 8) + 4 * 2 * 64 * 32 // 4
    everyones = 512 * (5 * 64 + 64 * 8)  # queries and chosen slots
    own, theirs = found.activations - everyones, alone.activations - everyones
    gathered = 512 // 4 * 3 * 2 * (6 + 4) * 2 * 2 * 16  # keys and values of the other three, in two layers
    assert own == theirs // 4 + gathered


def test_an_interleaved_pipeline_keeps_more():
    two = ParallelConfig(pipeline_model_parallel_size=2)
    four = replace(BASE, model=replace(BASE.model, num_layers=4), training=replace(BASE.training, global_batch_size=16))
    plain = replace(four, parallel=two)
    interleaved = replace(four, parallel=replace(two, num_virtual_stages_per_pipeline_rank=2))
    assert estimate_memory(plain, 512, 2, 0).activations == 2 * activation_bytes(plain, 512, 0)
    assert estimate_memory(interleaved, 512, 2, 0).activations == activation_bytes(interleaved, 512, 0) * 5 // 2


def test_full_recompute_keeps_inputs_and_one_unit():
    units = {}
    for method, layers in (("uniform", 1), ("uniform", 4), ("block", 3)):
        training = replace(
            BASE.training, recompute_granularity="full", recompute_method=method, recompute_num_layers=layers
        )
        config = replace(BASE, model=replace(BASE.model, num_layers=4), training=training)
        found = estimate_memory(replace(config, fwpkm=replace(BASE.fwpkm, layer_numbers=())), 512, 1).activations
        units[method, layers] = found
    layer, one_input = 512 * layer_bytes_per_token(BASE), 512 * 4 * 64
    end = units["uniform", 1] - layer - 4 * one_input  # logits and the last norm
    assert units["uniform", 4] == end + one_input + 4 * layer
    assert units["block", 3] == end + 3 * one_input + 2 * layer  # one that stays, one made anew


def test_undo_log_is_bounded_by_reads_and_by_slots():
    sub_keys = 4 * 2 * 64 * 32
    assert undo_log_bytes(BASE) == 4 * (2 * 64 * 8) * (4 * 64 + 8) + sub_keys
    few = replace(BASE, fwpkm=replace(BASE.fwpkm, num_subkeys=8))
    assert undo_log_bytes(few) == 4 * 64 * (4 * 64 + 8) + sub_keys // 8
    tail = replace(BASE, model=replace(BASE.model, seq_length=96))
    assert undo_log_bytes(tail) == (2 * 64 * 8 + 2 * 32 * 8) * (4 * 64 + 8) + sub_keys


# The real model


def build(config: PretrainConfig, vocabulary: int):
    from megatron_fwpkm.models.builder import build_model

    rows = padded_vocab_size(
        vocabulary, config.model.make_vocab_size_divisible_by, config.parallel.tensor_model_parallel_size
    )
    return build_model(config, rows)


@pytest.fixture(scope="module")
def single_process():
    from megatron_fwpkm.training.startup import distributed_run

    with distributed_run(ParallelConfig(), TrainingConfig(deterministic=False, num_threads=1)):
        yield


CHANGES = {
    "base": {},
    "untied": {"model": {"untie_embeddings_and_output_weights": True, "make_vocab_size_divisible_by": 128}},
    "biases": {"model": {"add_bias_linear": True, "qk_layernorm": False}},
    "wide heads": {"model": {"kv_channels": 24, "num_query_groups": None, "ffn_hidden_size": None}},
    "memories": {"fwpkm": {"layer_numbers": (1, 2), "num_heads": 2, "value_dim": 48, "gate": False}},
    "none": {"fwpkm": {"layer_numbers": ()}, "model": {"num_layers": 1}},
}


def changed(name: str) -> PretrainConfig:
    return replace(BASE, **{group: replace(getattr(BASE, group), **fields) for group, fields in CHANGES[name].items()})


@pytest.mark.parametrize("name", CHANGES)
def test_parameters_are_those_of_the_real_model(single_process, name):
    config = changed(name)
    model = build(config, 500)
    assert num_parameters(config, 500) == sum(parameter.numel() for parameter in model.parameters())


def test_tables_are_those_of_the_real_model(single_process):
    from megatron_fwpkm.models.builder import memory_layers

    state = memory_layers(build(BASE, 500))[0].fast_weights()
    assert table_bytes(BASE) == sum(table.numel() * table.element_size() for table in (state.sub_keys, state.values))


RECOMPUTE = {
    "nothing": {},
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ("mlp",)},
    "layers": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("memories", [(), (1,)])
def test_activations_are_near_what_autograd_saves(single_process, bf16, memories, recompute):
    from megatron.core.transformer.module import Float16Module

    config = replace(
        BASE,
        fwpkm=replace(BASE.fwpkm, layer_numbers=memories),
        training=replace(BASE.training, bf16=bf16, **RECOMPUTE[recompute]),
    )
    model = build(config, 512)
    module = Float16Module(model.config, model) if bf16 else model
    kept = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being used again
        return tensor

    tokens = torch.randint(0, 512, (2, 256))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(tokens, torch.arange(256).expand(2, 256), None, labels=tokens)
    measured = sum(size for size, _ in saved.values())
    estimate = activation_bytes(config, 512, 0)
    most = estimate + len(memories) * undo_log_bytes(config)
    assert 0.85 * estimate < measured < 1.15 * most, (measured, estimate, most)


def count_on_rank(rank: int, world_size: int, config: PretrainConfig) -> list[int]:
    """Parameters and table bytes that this rank really holds."""
    from megatron.core import parallel_state

    from megatron_fwpkm.models.builder import memory_layers
    from megatron_fwpkm.training import cpu_compat

    cpu_compat.install()
    parallel_state.initialize_model_parallel(config.parallel.tensor_model_parallel_size)
    model = build(config, 500)
    state = memory_layers(model)[0].fast_weights()
    return [
        sum(parameter.numel() for parameter in model.parameters()),
        sum(table.numel() * table.element_size() for table in (state.sub_keys, state.values)),
    ]


@pytest.mark.slow
def test_a_tensor_parallel_rank_holds_what_was_said():
    config = replace(
        BASE,
        model=replace(BASE.model, add_bias_linear=True, untie_embeddings_and_output_weights=True),
        parallel=ParallelConfig(tensor_model_parallel_size=2),
    )
    expected = [stage_parameters(config, 500, 0).on_rank(2), table_bytes(config, 2)]
    assert run_distributed(count_on_rank, 2, config, timeout=120) == [expected, expected]
