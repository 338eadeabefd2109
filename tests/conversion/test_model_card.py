"""The README of an export describes the memories that the model has, and none that it has not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import __version__ as version

from megatron_fwpkm.config import DataConfig
from megatron_fwpkm.config.derived import table_elements
from megatron_fwpkm.config.memories import memory_kinds
from megatron_fwpkm.conversion.export import export, hf_model
from megatron_fwpkm.conversion.model_card import model_card
from tests.checkpoint.contents import contents_of
from tests.layers.megatron import initialize, tiny


def card(**options: Any) -> str:
    initialize()
    contents = contents_of(tiny(**options), 60, 64)
    return model_card(contents, hf_model(contents))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ["Attention sees windows"]),
        ({"pkm": {"layer_numbers": (2,)}}, ["a static product key memory of 64 slots"]),
        ({"model": {"layer_pattern": "gdn,gdn,fa"}}, ["In 2 of 3 layers a gated delta net"]),
    ],
)
def test_without_a_memory_none_is_described(options: dict[str, Any], said: list[str]) -> None:
    text = card(layer_numbers=(), **options)
    assert all(words in text for words in said), text
    for words in (
        "ast-weight",
        "ast weight",
        "FwPKM",
        "inference",
        "memory_mode",
        "reset_memory",
        "model.read",
        "tags:",
    ):
        assert words not in text.replace("megatron_fwpkm", ""), words
    assert "# Language model\n\nA causal transformer. " in text and "of 48 tokens.\n\n## Use" in text
    assert text.count("```") == 2 and "\n\n\n" not in text and text.count("\n* ") == 5


def test_each_memory_is_described() -> None:
    config = {"layer_numbers": (2,), "reset": "never"}
    one, other = card(**config), card(layer_numbers=(), fwmlp={"layer_numbers": (1, 3)})
    both = card(**config, fwmlp={"layer_numbers": (1, 3)})
    product_keys = (
        "A Fast-weight Product Key Memory (arXiv 2601.00671), a sparse memory of 64 slots before the token mixer of "
        "layer 1 (counted from 0), is read for every token and updated by gradient descent after every 16 tokens"
    )
    fast_mlp = "Before the token mixer of layers 0, 2 (counted from 0) stands a fast-weight MLP"
    assert product_keys in one and product_keys in both and product_keys not in other and "slots" not in other
    assert fast_mlp in other and fast_mlp in both and fast_mlp not in one
    for text, tags in ((one, "fwpkm"), (other, "fwmlp"), (both, "fwmlp, fwpkm")):
        assert f"\ntags: [{tags}, fast-weights, long-context]\n---\n" in text
        assert "# Language model with fast weights\n\n" in text and "starts from the memory at the end" in text
        assert "cache = model.read(" in text and "model.memory_mode" in text and text.count("```") == 4
        assert "\n\n\n" not in text and text.count("\n* ") == 9


def test_training_and_license() -> None:
    initialize()
    data = DataConfig(train_data_path=("0.7", "/data/private/austen_text_document", "0.3", "code_document"))
    contents = replace(
        contents_of(replace(tiny(), data=data), 60, 64), consumed_tokens=1234567, versions={"torch": "2.0.1"},
        validation={"iteration": 20, "lm_loss": 3.14159},
    )  # fmt: skip
    model = hf_model(contents)
    text, licensed = model_card(contents, model), model_card(contents, model, "cc-by-4.0")
    assert "* Data: 1,234,567 tokens of 0.7, `austen_text_document`, 0.3, `code_document` (weight, dataset).\n" in text
    assert "private" not in text
    assert "* Evaluation: loss 3.1416 (nats per token) on the validation data at iteration 20.\n" in text
    assert f"trained with torch 2.0.1, exported with torch {torch.__version__}, transformers {version}.\n" in text
    assert "No license of the weights was given." in text and "\nlicense:" not in text
    assert "\nlicense: cc-by-4.0\ntags: [" in licensed and "The weights are under: cc-by-4.0." in licensed


def test_numbers_of_a_memory() -> None:
    config = tiny(layer_numbers=(2, 3), fwmlp={"layer_numbers": (1,)})
    tables = sum(kind.fast.elements(config, 1) * len(kind.options.layer_numbers) for kind in memory_kinds(config))
    assert tables > 2 * table_elements(config)
    assert f" trained parameters, {tables:,} fast weights, hidden" in card(
        layer_numbers=(2, 3), fwmlp={"layer_numbers": (1,)}
    )


def test_a_license_is_an_identifier(tmp_path: Path) -> None:
    for name in ("a: b", "two words", "line\nbreak", "", "-x"):
        with pytest.raises(ValueError, match="--license .* is not an identifier such as apache-2.0"):
            export(tmp_path / "run", tmp_path / "hf", license=name)
