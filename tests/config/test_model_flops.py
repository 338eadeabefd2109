"""FLOPs per token: known sums, the windows of attention, and what torch counts in a model's matrix products."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from megatron_fwpkm.config import ModelConfig, PKMConfig
from megatron_fwpkm.config.derived import embedding_rows, mean_tokens_seen
from megatron_fwpkm.config.layer_pattern import layer_window, layer_windows
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.model_flops import forward_flops_by_part, kind_flops, training_flops
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from tests.config.test_layer_kinds import shifted, with_mixers  # noqa: F401
from tests.engines.test_engine import BASE, VOCABULARY, batches

STATIC_MEMORY = PKMConfig(layer_numbers=(1,), num_heads=2, num_subkeys=4, key_dim=6, value_dim=10, topk=3)


@pytest.mark.parametrize("length", [1, 2, 7, 64])
@pytest.mark.parametrize("window", [None, 0, 1, 6, 63, 100])
def test_attention_sees_its_causal_window(length: int, window: int | None) -> None:
    reach = length if window is None else window
    seen = [min(position, reach) + 1 for position in range(length)]
    assert mean_tokens_seen(length, window) == pytest.approx(sum(seen) / length, rel=1e-12)


@pytest.mark.parametrize("pattern", ["fa", "swa", "swa:3,swa*2,fa", "fa*3,swa:0*3"])
def test_the_window_of_one_layer_is_that_of_all(pattern: str) -> None:
    model = ModelConfig(num_layers=12, layer_pattern=pattern, window_size=(7, 0))
    assert tuple(layer_window(model, number) for number in range(1, 13)) == layer_windows(model)


def test_a_plain_model_costs_six_per_weight_and_token_and_its_attention() -> None:
    sizes = "--num-layers 3 --hidden-size 48 --num-attention-heads 4 --num-query-groups 2 --ffn-hidden-size 128"
    config = parse_pretrain([*sizes.split(), "--seq-length", "100", "--layer-pattern", "swa:9,fa,swa:9"]).config
    weights = 3 * (48 * (2 * 48 + 2 * 24) + 3 * 48 * 128) + 128 * 48
    seen = 2 * mean_tokens_seen(100, 9) + mean_tokens_seen(100, None)
    assert training_flops(config, 128) == pytest.approx(6 * weights + 3 * 4 * 48 * seen, rel=1e-12)


def test_matrix_products_are_those_that_torch_counts() -> None:
    """The scores of all sub-keys among them; attention, reads and writes are no products of matrices."""
    config = replace(BASE, model=replace(BASE.model, hidden_dropout=0.0, attention_dropout=0.0), pkm=STATIC_MEMORY)
    with megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, embedding_rows(config, VOCABULARY), world.device)
        with FlopCounterMode(display=False) as counter:
            engine.evaluate(batches(0), 1)
    counted = {str(name): found for name, found in counter.get_flop_counts()["Global"].items()}
    products = sum(counted.get(f"aten.{name}", 0) for name in ("mm", "addmm", "bmm", "baddbmm"))
    tokens, fwpkm, model = 4 * 24, config.fwpkm, config.model
    parts = forward_flops_by_part(config, VOCABULARY)
    pairs = fwpkm.num_heads * fwpkm.topk
    inner = 2 * pairs * (2 * fwpkm.value_dim + fwpkm.key_dim)
    attention = 2 * 2 * 2 * model.hidden_size * mean_tokens_seen(24, None)
    reads = 2 * STATIC_MEMORY.num_heads * STATIC_MEMORY.topk * STATIC_MEMORY.value_dim
    assert products == tokens * (sum(parts.values()) - inner - attention - reads)


def test_a_frozen_memory_only_reads() -> None:
    def memory(*flags: str) -> float:
        return forward_flops_by_part(parse_pretrain(["--fwpkm-layer-numbers", "1", *flags]).config, 100)["memory"]

    assert memory() - memory("--fwpkm-inner-lr", "0") == 2 * 8 * 512 + 2 * 8 * 512


def test_a_kind_that_says_nothing_multiplies_by_its_weights(shifted) -> None:  # noqa: F811
    assert shifted.flops is None
    assert kind_flops(with_mixers("shifted"), shifted, 1) == 2 * 5
