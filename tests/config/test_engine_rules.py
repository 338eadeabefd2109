"""--engine deepspeed: what it refuses, with the reason, and how a file of its options meets the flags."""

# ruff: noqa: E501 - a table of whole messages is read more easily than one of pieces

from __future__ import annotations

import json
import re

import pytest

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.deepspeed_options import deepspeed_options
from megatron_fwpkm.config.engine_rules import DEEPSPEED_REFUSALS
from megatron_fwpkm.config.library_rules import why_no_gradient_fusion
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.validation import problems

SOUND = ["--data-path", "corpus", "--tokenizer-model", "t.model", "--num-layers", "4", "--fwpkm-layer-numbers", "2"]


def config_of(words: str) -> PretrainConfig:
    return parse_pretrain([*SOUND, *words.split()]).config


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--zero-stage 0",
        "--zero-stage 3 --bf16 --tensor-model-parallel-size 2 --sequence-parallel --overlap-grad-reduce",
        "--zero-stage 2 --bf16 --grad-reduce-in-bf16 --context-parallel-size 2",
        "--recompute-granularity selective --cpu-offloading-num-layers 2 --clip-grad 0",
    ],
)
def test_a_sound_configuration_passes(words):
    assert problems(config_of(f"--engine deepspeed {words}"), 4) == []


REFUSED = [
    ("--pipeline-model-parallel-size 2", "with --pipeline-model-parallel-size 2: ZeRO has no schedule"),
    ("--use-distributed-optimizer", "with --use-distributed-optimizer: it is Megatron's own sharding of the optimizer states; give --zero-stage 1"),
    ("--calculate-per-token-loss", "with --calculate-per-token-loss: DeepSpeed averages the gradients"),
    ("--zero-stage 0 --bf16", "with --zero-stage 0 and --bf16: DeepSpeed has no optimizer without sharding"),
    ("--zero-stage 3 --check-weight-hash-across-dp-replicas-interval 5", "interval 5: every weight exists only once"),
    ("--zero-stage 3 --bf16 --transformer-impl transformer_engine --fp8-format hybrid", "with --zero-stage 3 and --fp8-format hybrid: ZeRO-3 shards the bytes of a weight"),
    ("--adam-implementation apex", "with --adam-implementation apex: its steps are torch's"),
    ("--zero-stage 3 --log-straggler", "with --zero-stage 3 and --log-straggler: every layer waits for the weights"),
    ("--on-nan skip", "with --on-nan skip: DeepSpeed gives the norm of the gradients only after its update"),
    ("--save x --async-save", "with --async-save: DeepSpeed writes its files while training waits"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_run_is_refused_with_its_reason(words, message):
    found = problems(config_of(f"--engine deepspeed {words}"), 4)
    assert len(found) == 1 and found[0].startswith("--engine deepspeed does not run with ")
    assert message in found[0]
    assert problems(config_of(words.replace("--zero-stage 0", "").replace("--zero-stage 3", "")), 4) == []


def test_every_refusal_is_tested():
    assert len(DEEPSPEED_REFUSALS) == len(REFUSED)


@pytest.mark.parametrize("words", ["--zero-stage 2", "--deepspeed-config ds.json"])
def test_options_of_deepspeed_need_it(words):
    assert problems(config_of(words)) == [f"{words} is an option of DeepSpeed: also set --engine deepspeed, or remove it"]


def test_the_stage_has_a_range():
    assert problems(config_of("--engine deepspeed --zero-stage 4")) == ["--zero-stage 4 must be between 0 and 3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"zero_optimization": {"stage": 3}}', r"sets zero_optimization.stage to 3, but --zero-stage sets it to 1: use the same value"),
        ('{"bf16": {"enabled": true}}', "sets bf16.enabled to true, but --bf16 sets it to false"),
        ('{"gradient_clipping": 0.5}', "sets gradient_clipping to 0.5, but --clip-grad sets it to 1.0"),
        ('{"train_batch_size": 7}', "sets train_batch_size to 7, but --global-batch-size sets it to 4"),
        ('{"optimizer": {"type": "Adam"}}', "has optimizer, which cannot be set in this file; use flags for the model"),
        ('{"zero_optimisation": {}}', r"has zero_optimisation, which cannot be set in this file (did you mean zero_optimization?); use flags"),
        ("[1]", "must hold a JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_a_file_that_contradicts_the_flags_is_refused(tmp_path, content, message):
    file = tmp_path / "ds.json"
    file.write_text(content)
    found = problems(config_of(f"--engine deepspeed --deepspeed-config {file}"), 4)
    assert len(found) == 1 and message in found[0] and str(file) in found[0]


def test_a_missing_file_is_named():
    found = problems(config_of("--engine deepspeed --deepspeed-config nowhere.json"))
    assert len(found) == 1 and re.search(r"nowhere.json cannot be read: No such file", found[0])


def test_a_file_is_merged_with_the_flags(tmp_path):
    file = tmp_path / "ds.json"
    read = {"zero_optimization": {"stage": "auto", "reduce_bucket_size": 5}, "bf16": {"enabled": False}, "dump_state": True}
    file.write_text(json.dumps(read))
    config = config_of(f"--engine deepspeed --zero-stage 2 --global-batch-size 8 --deepspeed-config {file}")
    assert problems(config, 2) == []
    made = deepspeed_options(config, 2)
    assert made["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 5, "overlap_comm": False}
    assert made["dump_state"] is True and made["gradient_accumulation_steps"] == 4
    assert made["train_micro_batch_size_per_gpu"] == 1 and made["bf16"] == {"enabled": False}


def test_gradients_are_not_fused():
    config = config_of("--engine deepspeed --gradient-accumulation-fusion on")
    wanted = "--gradient-accumulation-fusion on: --engine deepspeed keeps gradients in buffers of its own; use auto or off"
    assert problems(config) == [wanted]
    assert why_no_gradient_fusion(config_of("--engine deepspeed")) is not None
