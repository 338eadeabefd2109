"""Rules of the static memory, its place in the layers, and what a dry run and a checkpoint's comparison say of it."""

from __future__ import annotations

import pytest

from megatron_fwpkm.checkpoint.compatibility import check_resumable
from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.layer_kinds import layer_plan
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.parameter_counts import num_parameters
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.training.memory_estimate import estimate_memory

PAPER = "--num-layers 12 --hidden-size 768 --ffn-hidden-size 2304 --num-attention-heads 12 --vocab-size 32000"


def parse(flags: str) -> PretrainConfig:
    return parse_pretrain(f"{PAPER} --tokenizer-type NullTokenizer --data-path corpus {flags}".split()).config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--pkm-layer-numbers 0 13", "0 13 must be between 1 and 12 .*the paper counts from 0: add 1"),
        ("--pkm-layer-numbers 3 3", "contains 3 more than once, but a layer has one MLP"),
        ("--pkm-layer-numbers 3 --pkm-topk 9 --pkm-num-subkeys 8", "--pkm-topk 9 exceeds the 8 sub-keys.* at most 8"),
        ("--pkm-layer-numbers 3 --pkm-key-dim 7", "--pkm-key-dim 7 must be even.*6 or 8"),
        (
            "--pkm-layer-numbers 3 --pkm-value-dim 6 --tensor-model-parallel-size 4",
            "--tensor-model-parallel-size 4 does not divide --pkm-value-dim 6",
        ),
        (
            "--pkm-layer-numbers 3 --pkm-num-subkeys 1048576",
            "--pkm-num-subkeys 1048576 and --pkm-value-dim 512 make 2,048.*TiB of slow weights",
        ),
        ("--pkm-values-lr-mult 0", "--pkm-values-lr-mult 0.0 must be greater than 0"),
    ],
)
def test_what_is_refused(flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raise ValueError("; ".join(problems(parse(flags), 4)))


def test_it_takes_the_place_of_the_mlp() -> None:
    config = parse("--pkm-layer-numbers 3 7 11 --fwpkm-layer-numbers 3")
    assert [number for number, parts in enumerate(layer_plan(config), 1) if parts.mlp == "pkm"] == [3, 7, 11]
    assert layer_plan(config)[2].memory == "fwpkm" and problems(config, 1) == []
    values, mlp = 512**2 * 512, 3 * 768 * 2304
    others = (768 + 2 + 512) * 2048 + (2 * 768 + 1) * 512 + 768
    without = num_parameters(parse("--fwpkm-layer-numbers 3"), 32000)
    assert num_parameters(config, 32000) - without == 3 * (values + others - mlp)


def test_the_memory_of_its_optimizer_states_is_counted() -> None:
    with_pkm, without = (estimate_memory(parse(flags), 32000, 1) for flags in ("--pkm-layer-numbers 3", ""))
    more = num_parameters(parse("--pkm-layer-numbers 3"), 32000) - num_parameters(parse(""), 32000)
    assert more > 0.95 * 512**2 * 512 and with_pkm.optimizer - without.optimizer == 8 * more
    short = estimate_memory(parse("--pkm-layer-numbers 3 --seq-length 8"), 32000, 1)
    assert short.temporaries == 2 * 4 * 512**2 * 512 - short.activations, "two results of AdamW as large as the values"
    assert with_pkm.gradients - without.gradients == with_pkm.weights - without.weights == 4 * more


def test_a_dense_checkpoint_begins_a_model_with_it() -> None:
    dense, static = parse(""), parse("--pkm-layer-numbers 3 7 --pkm-num-subkeys 64")
    with pytest.raises(ValueError, match="--pkm-layer-numbers is none in the checkpoint and 3 7 in this run"):
        check_resumable(dense, static, "there", finetune=False)
    (notice,) = check_resumable(dense, static, "there", finetune=True)
    assert notice.startswith("layers 3 7 have a static memory in this run and an MLP in the checkpoint: an MLP is not")
    (notice,) = check_resumable(static, dense, "there", finetune=True)
    assert notice.startswith("layers 3 7 have an MLP in this run and a static memory in the checkpoint")


def test_two_static_memories_must_have_the_same_sizes() -> None:
    one, other = parse("--pkm-layer-numbers 3"), parse("--pkm-layer-numbers 3 7 --pkm-num-subkeys 64")
    with pytest.raises(ValueError, match="--pkm-num-subkeys is 512 in the checkpoint and 64 in this run"):
        check_resumable(one, other, "there", finetune=True)
