"""Rules on the implementation of the layers: what is refused whatever is installed."""

# ruff: noqa: E501 - a table of whole messages is read more easily than one of pieces

from __future__ import annotations

import pytest

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.implementation_rules import why_no_engine_attention
from megatron_fwpkm.config.validation import problems
from tests.config.test_validation import config_of

FP8 = "--bf16 --fp8-format hybrid"


@pytest.mark.parametrize(
    "words",
    [
        "--transformer-impl transformer_engine --attention-backend te --rope-fusion",
        "--attention-backend te --layer-pattern swa:127",
        "--attention-backend te --bf16 --context-parallel-size 2",
        f"{FP8} --fp8-margin 2 --tensor-model-parallel-size 2 --sequence-parallel",
        f"{FP8} --fp8-recipe mxfp8 --recompute-granularity selective",
        "--rope-fusion --no-reset-position-ids --transformer-impl auto",
        "--no-rope-fusion --transformer-impl local",
    ],
)
def test_a_sound_configuration_passes(words: str) -> None:
    assert problems(config_of(*words.split())) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--transformer-impl local --attention-backend te", "--attention-backend te needs --transformer-impl transformer_engine: give it, or --attention-backend local"),
        ("--attention-backend te --reset-attention-mask", "--attention-backend te cannot keep documents apart, as --reset-attention-mask asks: use --attention-backend auto, or"),
        ("--attention-backend te --context-parallel-size 2", "--attention-backend te with --context-parallel-size 2 computes in bfloat16 only: give --bf16"),
        ("--attention-backend te --context-parallel-size 2 --bf16 --layer-pattern swa:127", "--attention-backend te has no windows with --context-parallel-size 2: use --attention-backend auto"),
        ("--transformer-impl local --rope-fusion", "--rope-fusion needs --transformer-impl transformer_engine: give it, or remove --rope-fusion"),
        ("--rope-fusion --reset-position-ids", "--rope-fusion needs the same positions in all sequences of a batch, and --reset-position-ids"),
        ("--fp8-recipe tensorwise", "--fp8-recipe tensorwise has no effect without --fp8-format: give --fp8-format hybrid, or remove --fp8-recipe"),
        ("--fp8-margin 1", "--fp8-margin 1 has no effect without --fp8-format"),
        ("--fp8-format hybrid", "--fp8-format hybrid computes in bfloat16 wherever it does not in FP8: give --bf16"),
        (f"{FP8} --transformer-impl local", "--fp8-format hybrid needs --transformer-impl transformer_engine: give it, or remove --fp8-format hybrid"),
        (f"{FP8} --fp8-recipe tensorwise --fp8-margin 1", "--fp8-margin 1 has no effect with --fp8-recipe tensorwise: remove it, or use --fp8-recipe delayed"),
        (f"{FP8} --cpu-offloading-num-layers 2", "--cpu-offloading-num-layers 2 would also move the FP8 copies of weights to the host: remove it or --fp8-format hybrid"),
        (f"{FP8} --hidden-size 760 --num-attention-heads 10", "--fp8-recipe delayed needs multiples of 16, and on a rank --hidden-size is 760: use 752 or 768"),
        (f"{FP8} --fp8-recipe mxfp8 --ffn-hidden-size 2000", "--fp8-recipe mxfp8 needs multiples of 32, and on a rank --ffn-hidden-size is 2000: use 1984 or 2016"),
        (f"{FP8} --ffn-hidden-size 2024 --tensor-model-parallel-size 2", "on a rank --ffn-hidden-size is 1012: use 1008 or 1024"),
        (f"{FP8} --kv-channels 36 --num-attention-heads 1", "on a rank the width of all query heads is 36: use 32 or 48"),
        (f"{FP8} --kv-channels 8 --num-attention-heads 4 --num-query-groups 1 --fp8-recipe mxfp8", "on a rank the width of all query, key and value heads is 48: use 32 or 64"),
        (f"{FP8} --fwpkm-key-dim 40", "on a rank --fwpkm-num-heads times --fwpkm-key-dim is 40: use 32 or 48"),
        (f"{FP8} --fwpkm-value-dim 24", "on a rank --fwpkm-value-dim is 24: use 16 or 32"),
        (f"{FP8} --seq-length 4104", "--fp8-recipe delayed needs a multiple of 16 tokens on a rank, and --micro-batch-size 1 times --seq-length 4104 gives it 4104: change one of them"),
    ],
)  # fmt: skip
def test_what_is_refused(words: str, message: str) -> None:
    found = problems(config_of(*words.split()))
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--bf16", None),
        ("", "no --bf16"),
        ("--bf16 --reset-attention-mask", "does not keep documents apart"),
        ("--bf16 --kv-channels 260", "and these have 260"),
        ("--bf16 --kv-channels 36", "and these have 36"),
    ],
)  # fmt: skip
def test_what_keeps_auto_from_the_attention_of_transformer_engine(words: str, reason: str | None) -> None:
    config: PretrainConfig = config_of(*words.split())
    found = why_no_engine_attention(config)
    assert found == reason if reason is None else reason in str(found)
