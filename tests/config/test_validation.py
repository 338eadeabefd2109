"""Every rule between options: its message names flags, values and a way out."""

# ruff: noqa: E501 - a table of whole messages is read more easily than one of pieces

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.field_metadata import values_out_of_range
from megatron_fwpkm.config.loading import option_groups, parse_pretrain
from megatron_fwpkm.config.validation import problems, validate

SOUND = ["--data-path", "corpus", "--tokenizer-model", "t.model", "--num-layers", "4", "--fwpkm-layer-numbers", "2"]


def config_of(*words: str) -> PretrainConfig:
    return parse_pretrain([*SOUND, *words]).config


@pytest.mark.parametrize(
    ("words", "world_size"),
    [
        ("", None),
        ("--tensor-model-parallel-size 4 --num-query-groups 4", 8),
        ("--fwpkm-layer-numbers none --fwpkm-topk 600 --seq-length 8", 3),
        ("--layer-pattern swa:23,fa,swa:0,swa --window-size 127,0", 1),
        ("--lr-decay-style WSD --lr-warmup-iters 100 --lr-wsd-decay-iters 900", None),
        ("--cpu-offloading-num-layers 4 --recompute-granularity selective", None),
        ("--data-path 0.3 a 0.7 b --split 1,0,0 --eval-iters 0", None),
        ("--data-path none --train-data-path a --valid-data-path b", None),
        ("--needle-fraction 0.5 --fwpkm-reset document --save x --resume --load y --finetune --save-interval 2", None),
        ("--fwpkm-owner sequence --fwpkm-reset step --micro-batch-size 2", None),
        ("--fwpkm-owner sequence --fwpkm-reset document --micro-batch-size 2", None),
    ],
)
def test_a_sound_configuration_passes(words, world_size):
    config = config_of(*words.split())
    assert problems(config, world_size) == []
    validate(config, world_size)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # model
        ("--hidden-size 100", "--hidden-size 100 is not divisible by --num-attention-heads 12: use --hidden-size 96 or 108, or give --kv-channels"),
        ("--num-query-groups 5", "--num-query-groups 5 must divide --num-attention-heads 12: use 4 or 6"),
        ("--rotary-percent 0.05", "--rotary-percent 0.05 of a head of 64 rotates 3 channels, which must be an even number of at least 2"),
        ("--rope-scaling-factor 32", "--rope-scaling-factor 32 has no effect without --use-rope-scaling: add it, or remove --rope-scaling-factor"),
        ("--rotary-scaling-factor 4", "--rotary-scaling-factor 4 has no effect without --rope-type yarn: add it, or remove"),
        ("--yarn-original-max-position-embeddings 8192", "--yarn-original-max-position-embeddings 8192 has no effect without --rope-type"),
        ("--rope-type yarn", "--rope-type yarn has no effect with --rotary-scaling-factor 1: give the factor"),
        ("--rope-type yarn --rotary-scaling-factor 4 --use-rope-scaling", "--rope-type yarn and --use-rope-scaling both stretch the rotary positions"),
        ("--rope-type yarn --rotary-scaling-factor 4 --yarn-beta-slow 32", "--yarn-beta-fast 32 must be greater than --yarn-beta-slow 32: more turns are faster"),
        ("--rope-type yarn --rotary-scaling-factor 4 --rope-fusion", "--rope-fusion cannot scale the cosines, as --rope-type yarn does"),
        ("--rotary-base 10000.5", "--rotary-base 10000.5 must be an integer; use 10000"),
        ("--layer-pattern swa --window-size 127,3", "--window-size 127,3 would attend to future tokens: RIGHT must be 0, as in 127,0"),
        ("--layer-pattern swa --window-size 64,-1", "--window-size 64,-1 would attend to future tokens: RIGHT must be 0"),
        ("--layer-pattern swa --window-size -1,0", "--window-size -1,0 has no meaning: LEFT is the number of tokens before a token; layers with full attention are fa"),
        # memory
        ("--fwpkm-layer-numbers 2 5", "--fwpkm-layer-numbers 5 must be between 1 and 4 (--num-layers)"),
        ("--fwpkm-layer-numbers 0", "must be between 1 and 4 (--num-layers) (the paper counts from 0: add 1)"),
        ("--fwpkm-layer-numbers 2 2", "--fwpkm-layer-numbers contains 2 more than once"),
        ("--no-fwpkm-gate --no-fwpkm-gate-writes", "--no-fwpkm-gate-writes has no effect with --no-fwpkm-gate"),
        ("--fwpkm-num-subkeys 4", "--fwpkm-topk 8 exceeds the 4 sub-keys of a half (--fwpkm-num-subkeys): use at most 4"),
        (
            "--fwpkm-table-dtype bf16 --fwpkm-implementation reference",
            "--fwpkm-table-dtype bf16 is not supported by --fwpkm-implementation reference, which has one dtype: use auto",
        ),
        ("--fwpkm-key-dim 33", "--fwpkm-key-dim 33 must be even, because a query is split into halves; use 32 or 34"),
        ("--fwpkm-value-dim 1", "--fwpkm-value-dim 1 cannot be z-scored: use at least 2, or --no-fwpkm-normalize-targets"),
        ("--fwpkm-lookahead 64 --fwpkm-chunk-size 64", "--fwpkm-lookahead 64 leaves no tokens to write of --fwpkm-chunk-size 64: use a lookahead of at most 63"),
        ("--seq-length 256", "--fwpkm-chunk-size 512 is longer than --seq-length 256, but a chunk cannot span sequences; use a chunk of at most 256"),
        ("--fwpkm-dp-sync average --fwpkm-reset step", "--fwpkm-dp-sync average has no effect with --fwpkm-reset step, which discards the memory: remove"),
        ("--fwpkm-owner sequence", "--fwpkm-owner sequence ends a memory with its sequence, but --fwpkm-reset never carries it over to the next: use --fwpkm-reset step or document, or --fwpkm-owner micro-batch"),
        # layout
        ("--tensor-model-parallel-size 3 --fwpkm-value-dim 513 --ffn-hidden-size 2049", "--tensor-model-parallel-size 3 does not divide --fwpkm-num-subkeys 512 (near: 510 or 513)"),
        ("--tensor-model-parallel-size 8", "--tensor-model-parallel-size 8 does not divide --num-attention-heads 12 (near: 8 or 16) and --num-query-groups 12 (near: 8 or 16): use a tensor-parallel size of 4, which divides everything"),
        ("--tensor-model-parallel-size 4 --fwpkm-value-dim 510", "does not divide --fwpkm-value-dim 510 (near: 508 or 512): use a tensor-parallel size of 2"),
        ("--tensor-model-parallel-size 2 --ffn-hidden-size 7", "does not divide --ffn-hidden-size 7 (near: 6 or 8)"),
        ("--tensor-model-parallel-size 2 --sequence-parallel --seq-length 1023", "does not divide --seq-length 1023 (near: 1022 or 1024)"),
        ("--sequence-parallel", "--sequence-parallel requires --tensor-model-parallel-size of at least 2"),
        ("--pipeline-model-parallel-size 3", "--pipeline-model-parallel-size 3 does not divide --num-layers 4: use 2 or 4 stages"),
        ("--num-virtual-stages-per-pipeline-rank 2", "--num-virtual-stages-per-pipeline-rank 2 requires --pipeline-model-parallel-size of at least 2"),
        ("--num-virtual-stages-per-pipeline-rank 3 --pipeline-model-parallel-size 2", "--num-virtual-stages-per-pipeline-rank 3 does not divide the 2 layers of a stage (--num-layers 4 over 2 stages): use 2"),
        ("--context-parallel-size 2 --seq-length 1022", "--seq-length 1022 is not divisible by the 4 pieces that --context-parallel-size 2 cuts it into: use --seq-length 1020 or 1024"),
        ("--context-parallel-size 3 --tensor-model-parallel-size 2 --fwpkm-value-dim 516 --seq-length 4092", "--fwpkm-num-subkeys 512 is not divisible by --tensor-model-parallel-size 2 times --context-parallel-size 3: use 510 or 516"),
        ("--context-parallel-size 2 --fwpkm-value-dim 513", "--fwpkm-value-dim 513 is not divisible by --tensor-model-parallel-size 1 times --context-parallel-size 2: use 512 or 514"),
        ("--recompute-granularity full --recompute-method block", "--recompute-granularity full requires --recompute-num-layers, for example uniform and 1"),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 5", "--recompute-num-layers 5 exceeds the 4 layers of a model chunk: use at most 4"),
        ("--recompute-granularity selective --recompute-method block", "--recompute-method block requires --recompute-granularity full: add it, or remove --recompute-method"),
        ("--cpu-offloading-num-layers 3 --pipeline-model-parallel-size 2", "--cpu-offloading-num-layers 3 exceeds the 2 layers of a model chunk: use at most 2"),
        ("--cpu-offloading-num-layers 2 --recompute-granularity full --recompute-method block --recompute-num-layers 1", "--cpu-offloading-num-layers 2 has nothing to offload with --recompute-granularity full, which stores no activations: use --recompute-granularity selective"),
        # schedule
        ("--lr-warmup-iters 1000", "--lr-warmup-iters 1000 is not below the end of the decay (--train-iters 1000): shorten the warm-up"),
        ("--lr-warmup-iters 50 --lr-decay-iters 50", "--lr-warmup-iters 50 is not below the end of the decay (--lr-decay-iters 50)"),
        ("--min-lr 1", "--min-lr 1.0 is greater than --lr 0.001: lower it"),
        ("--lr-wsd-decay-iters 10", "--lr-wsd-decay-iters 10 requires --lr-decay-style WSD, not cosine: use WSD, or remove it"),
        ("--lr-decay-style WSD --lr-wsd-decay-iters 999 --lr-warmup-iters 2", "--lr-wsd-decay-iters 999 does not fit between --lr-warmup-iters 2 and --train-iters 1000: use at most 998"),
        ("--decoupled-min-lr 0.1", "--decoupled-min-lr 0.1 requires --decoupled-lr"),
        ("--decoupled-lr 0.01 --decoupled-min-lr 0.1", "--decoupled-min-lr 0.1 is greater than --decoupled-lr 0.01: lower it"),
        ("--decoupled-lr 1e-5 --min-lr 1e-4", "--min-lr 0.0001 is greater than --decoupled-lr 1e-05: give --decoupled-min-lr"),
        ("--start-weight-decay 0.1", "--start-weight-decay 0.1 requires --weight-decay-incr-style linear or cosine: with constant, --weight-decay applies throughout"),
        ("--weight-decay-incr-style linear", "--weight-decay-incr-style linear requires --start-weight-decay and --end-weight-decay"),
        ("--weight-decay-incr-style cosine --end-weight-decay 1", "--weight-decay-incr-style cosine requires --start-weight-decay"),
        ("--weight-decay-incr-style linear --start-weight-decay 0.2 --end-weight-decay 0.1", "--start-weight-decay 0.2 is greater than --end-weight-decay 0.1: weight decay must not decrease; lower the start"),
        # data
        ("--data-path none", "no training data: give --data-path PREFIX (made by tools/preprocess_data.py) or --train-data-path"),
        ("--train-data-path a --valid-data-path b", "--data-path and --train-data-path --valid-data-path are mutually exclusive"),
        ("--data-path none --valid-data-path b", "--valid-data-path requires --train-data-path"),
        ("--data-path none --train-data-path b", "--eval-iters 100 requires --valid-data-path with --train-data-path: add it, or use --eval-iters 0"),
        ("--data-path a b", "--data-path a b: several corpora are a blend, written as pairs WEIGHT PREFIX"),
        ("--data-path 0.5 a 0.5", "--data-path 0.5 a 0.5: several corpora are a blend"),
        ("--data-path 0 a 1 b", "--data-path 0 a 1 b: several corpora are a blend, written as pairs WEIGHT PREFIX with weights above 0"),
        ("--split 90,10", "--split 90,10 is malformed: write the shares of training, validation and test as three numbers like 969,30,1"),
        ("--split a,b,c", "--split a,b,c is malformed"),
        ("--split 0,1,1", "--split 0,1,1 is malformed: write the shares of training, validation and test as three numbers like 969,30,1, the first above 0"),
        ("--split 9,-1,1", "--split 9,-1,1 is malformed"),
        ("--split 100,0,0", "--split 100,0,0 leaves no validation documents for --eval-iters 100: give them a share, or use --eval-iters 0"),
        ("--tokenizer-type NullTokenizer", "--tokenizer-type NullTokenizer requires --vocab-size"),
        ("--tiktoken-pattern v1", "--tiktoken-pattern v1 has no effect with --tokenizer-type SentencePieceTokenizer: remove it"),
        ("--tokenizer-type NullTokenizer --vocab-size 2147483647", "--vocab-size 2147483647 must be at most 2147483646: ids are 32-bit integers"),
        ("--tokenizer-model none --tokenizer-type TikTokenizer", "--tokenizer-type TikTokenizer requires --tokenizer-model"),
        ("--tokenizer-model none", "--tokenizer-type SentencePieceTokenizer requires --tokenizer-model"),
        ("--needle-fraction 0.5 --needle-template {key}", "--needle-template '{key}' must contain {key} once and {value} once after it"),
        ("--needle-fraction 0.5 --needle-template {value}{key}", "--needle-template '{value}{key}' must contain"),
        # checkpoints
        ("--resume", "--resume requires --save, the folder of the run to resume"),
        ("--finetune", "--finetune requires --load, the folder of the weights to start from"),
        ("--save-interval 5", "--save-interval 5 has no effect without --save: add --save"),
        ("--save runs/x --save-interval 10 --save-retain-interval 25", "--save-retain-interval 25 is not divisible by --save-interval 10: use 20 or 30"),
        ("--save runs/x --save-interval 10 --save-retain-interval 5", "--save-retain-interval 5 is not divisible by --save-interval 10: use 10"),
        ("--save runs/x --save-retain-interval 5", "--save-retain-interval 5 requires --save-interval"),
        ("--save runs/x --save-interval 5 --save-retain-interval 5 --keep-last 0", "--save-retain-interval 5 has no effect with --keep-last 0, which keeps all checkpoints: remove it, or give --keep-last 1"),
        ("--ckpt-step 5", "--ckpt-step 5 requires a checkpoint to start from: add --resume with --save, or --load"),
        ("--exit-on-missing-checkpoint", "--exit-on-missing-checkpoint requires a checkpoint to start from"),
        ("--use-checkpoint-args", "--use-checkpoint-args requires a checkpoint to start from"),
        ("--use-checkpoint-opt_param-scheduler", "--use-checkpoint-opt-param-scheduler requires a checkpoint to start from"),
        ("--use-checkpoint-opt-param-scheduler --override-opt_param-scheduler --load x", "--override-opt-param-scheduler and --use-checkpoint-opt-param-scheduler are mutually exclusive"),
        ("--use-checkpoint-opt-param-scheduler --load x --finetune", "--use-checkpoint-opt-param-scheduler has no effect with --finetune, which restarts the schedule: remove one of them"),
        ("--dry-run-all", "--dry-run-all has no effect without --dry-run: add --dry-run"),
        # batch
        ("--micro-batch-size 3 --global-batch-size 32", "--global-batch-size 32 is not divisible by --micro-batch-size 3: use 30 or 33"),
    ],
)  # fmt: skip
def test_rule(words, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        validate(config_of(*words.split()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "world_size", "message"),
    [
        ("--tensor-model-parallel-size 4", 6, "the number of processes, 6, is not divisible by --tensor-model-parallel-size 4 times --pipeline-model-parallel-size 1: start 4 or 8"),
        ("--context-parallel-size 2", 3, "the number of processes, 3, is not divisible by --tensor-model-parallel-size 1 times --pipeline-model-parallel-size 1 times --context-parallel-size 2: start 2 or 4"),
        ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --global-batch-size 3", 2, "the number of micro-batches per step, 3, is not divisible by --pipeline-model-parallel-size 2, as an interleaved pipeline requires: use --global-batch-size 2 or 4"),
        ("--global-batch-size 12 --micro-batch-size 2", 4, "--global-batch-size 12 is not divisible by --micro-batch-size 2 times 4 data-parallel replicas: use 8 or 16"),
        ("--global-batch-size 3 --tensor-model-parallel-size 2", 4, "--global-batch-size 3 is not divisible by --micro-batch-size 1 times 2 data-parallel replicas: use 2 or 4"),
    ],
)  # fmt: skip
def test_rule_with_a_world_size(words, world_size, message):
    config = config_of(*words.split())
    with pytest.raises(ValueError, match=re.escape(message)):
        validate(config, world_size)
    validate(config)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--num-layers", "0", "--num-layers 0 must be at least 1"),
        ("--ffn-hidden-size", "-5", "--ffn-hidden-size -5 must be at least 1"),
        ("--fwpkm-topk", "0", "--fwpkm-topk 0 must be at least 1"),
        ("--fwpkm-lookahead", "-1", "--fwpkm-lookahead -1 must be at least 0"),
        ("--fwpkm-inner-lr", "-0.5", "--fwpkm-inner-lr -0.5 must be at least 0"),
        ("--fwpkm-inner-lr", "1e30", "--fwpkm-inner-lr 1e+30 must be at most 100"),
        ("--fwpkm-addressing-weight", "1001", "--fwpkm-addressing-weight 1001.0 must be at most 1000"),
        ("--fwpkm-chunk-size", "1048577", "--fwpkm-chunk-size 1048577 must be at most 1048576"),
        ("--rotary-base", "1e30", "--rotary-base 1e+30 must be at most 1000000000000000"),
        ("--norm-epsilon", "2", "--norm-epsilon 2.0 must be at most 1"),
        ("--init-method-std", "1e9", "--init-method-std 1000000000.0 must be at most 10"),
        ("--fwpkm-key-dim", "1", "--fwpkm-key-dim 1 must be at least 2"),
        ("--lr", "0", "--lr 0.0 must be greater than 0"),
        ("--divergence-factor", "1", "--divergence-factor 1.0 must be greater than 1"),
        ("--rotary-percent", "1.5", "--rotary-percent 1.5 must be between 0 and 1"),
        ("--needle-fraction", "1.5", "--needle-fraction 1.5 must be between 0 and 1"),
        ("--needle-fraction", "-0.5", "--needle-fraction -0.5 must be between 0 and 1"),
        ("--seed", "4294967296", "--seed 4294967296 must be between 0 and 4294967295"),
        ("--hidden-dropout", "1", "--hidden-dropout 1.0 must be at least 0 and below 1"),
        ("--adam-beta2", "1.0", "--adam-beta2 1.0 must be at least 0 and below 1"),
        ("--train-iters", "0", "--train-iters 0 must be at least 1"),
        ("--keep-last", "-1", "--keep-last -1 must be at least 0"),
    ],
)
def test_range(flag, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        validate(config_of(flag, value))


def test_numbers_made_in_python_are_checked_for_nan():
    config = config_of()
    config = replace(config, optimizer=replace(config.optimizer, lr=float("nan")))
    with pytest.raises(ValueError, match="--lr nan must be a finite number"):
        validate(config)


def test_every_number_has_a_range():
    """A very negative value of any number is refused, but for the one that may be negative."""
    numbers = [
        (cls, option.field_name)
        for _, cls, found in option_groups()
        for option in found
        if option.kind in ("integer", "number") and not option.is_list and option.field_name != "gate_bias_init"
    ]
    assert len(numbers) > 60
    for cls, name in numbers:
        assert list(values_out_of_range(cls(**{name: -7}))), (cls.__name__, name)


def test_several_problems_are_told_together():
    with pytest.raises(
        ValueError, match="2 problems in the configuration:\n  - .*--num-query-groups 5.*\n  - .*--min-lr 1"
    ):
        validate(config_of("--num-query-groups", "5", "--min-lr", "1"))


def test_ranges_come_before_rules():
    found = problems(config_of("--num-attention-heads", "0", "--min-lr", "1"))
    assert found == ["--num-attention-heads 0 must be at least 1"]


def test_a_dry_run_needs_neither_data_nor_tokenizer():
    words = ["--data-path", "none", "--tokenizer-model", "none", "--save-interval", "5"]
    assert len(problems(config_of(*words))) == 3
    assert problems(config_of(*words, "--dry-run")) == []
    assert len(problems(config_of(*words, "--tokenizer-type", "ByteLevelTokenizer"))) == 2
