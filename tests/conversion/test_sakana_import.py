"""What the import of a released checkpoint takes, warns of and refuses."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_fwpkm.conversion.convert_options import ImportOptions
from megatron_fwpkm.conversion.imported_card import imported_card
from megatron_fwpkm.conversion.sakana_import import import_sakana, sakana_model
from megatron_fwpkm.hf import FwPKMForCausalLM
from tests.conftest import Golden

from .released import parameters, write_released


@pytest.fixture(scope="module")
def golden(goldens: Callable[[str], Golden]) -> Golden:
    return goldens("model_train")


def imported(folder: Path, **changes: Any) -> FwPKMForCausalLM:
    return sakana_model(folder, ImportOptions(str(folder), "unused", "sakana", **changes))


def with_tensors(folder: Path, golden: Golden, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A checkpoint whose tensors were changed."""
    write_released(folder, golden)
    tensors = {name: tensor.clone() for name, tensor in parameters(golden).items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def same(left: FwPKMForCausalLM, right: FwPKMForCausalLM) -> bool:
    found = right.state_dict()
    return all(torch.equal(tensor, found[name]) for name, tensor in left.state_dict().items())


def test_shards_and_pickles_hold_the_same(golden: Golden, tmp_path: Path) -> None:
    whole = imported(write_released(tmp_path / "whole", golden))
    tensors = parameters(golden)
    sharded, pickled = (write_released(tmp_path / name, golden) for name in ("sharded", "pickled"))
    for folder in (sharded, pickled):
        (folder / "model.safetensors").unlink()
    halves = {f"model-0000{part}-of-00002.safetensors": sorted(tensors)[part::2] for part in (0, 1)}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, sharded / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    copy = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    torch.save(tensors | copy, pickled / "pytorch_model.bin")
    assert same(whole, imported(sharded)) and same(whole, imported(pickled))
    assert imported(sharded, dtype="bfloat16").model.layers[0].memory.values.dtype == torch.float32
    card = imported_card(whole)
    assert "in inference too:\n  0, 3\n" in card and "in the place of the MLP: 1\n" in card
    torch.save(tensors | {"lm_head.weight": torch.ones(64, 32)}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
        imported(pickled)
    torch.save({"code": test_shards_and_pickles_hold_the_same}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin cannot be read as weights alone"):
        imported(pickled)


@pytest.mark.parametrize(
    ("changes", "options", "lookahead", "said"),
    [
        ({"fwpkm_lookahaed": 0}, {}, 1, ["fwpkm_lookahaed=0: .* trained with lookahead 1: .* Set --lookahead 0"]),
        ({"fwpkm_lookahaed": 0}, {"lookahead": 2}, 2, []),
        ({"fwpkm_lookahaed": 1}, {}, 1, []),
        ({"pkm_dropout": 0.1, "fwpkm_x": "y"}, {}, 1, ["not know have no effect: pkm_dropout=0.1, fwpkm_x=.y"]),
        ({}, {}, 1, []),
    ],
)
def test_warnings(
    changes: dict[str, Any], options: dict[str, Any], lookahead: int, said: list[str], golden: Golden, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.WARNING, "megatron_fwpkm"):
        model = imported(write_released(tmp_path, golden, **changes), **options)
    assert model.config.fwpkm_lookahead == lookahead and len(caplog.messages) == len(said)
    for pattern in said:
        assert re.search(pattern, caplog.messages[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": None}, "config.json: it is not complete: head_dim is missing"),
        ({"layer_types": ["mamba"] * 4}, "layer_types contains 'mamba'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling has the type 'yarn'.* give yarn_factor"),
        ({"pkm_layers": [4]}, "pkm_layers contains 4, but the layers are numbered from 0 to 3"),
        ({"fwpkm_layers": 3}, "fwpkm_layers=3 has the wrong type; expected list"),
        ({"fwpkm_compress_value": "tanh"}, "fwpkm_compress_value='tanh' is not supported"),
        ({"model_type": "fwpkm"}, "is an export of this package already"),
        ({"fwpkm_topk": 17}, "fwpkm_topk=17 must be at most fwpkm_num_subkeys=16"),
        ({"pkm_layers": []}, "missing tensors: model.layers.1.mlp.down_proj.weight, .*without a place .*pkm.keys"),
        ({"fwpkm_n_subkeys": 8}, r"fwpkm.keys has shape \[32, 8\], expected \[16, 8\].*layers.3.fwpkm.values"),
    ],
)
def test_configurations_that_are_refused(
    changes: dict[str, Any], message: str, golden: Golden, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        imported(write_released(tmp_path, golden, **changes))


def test_weights_that_are_refused(golden: Golden, tmp_path: Path) -> None:
    name = "model.layers.0.fw_q_proj.bias"

    def damaged(tensors: dict[str, Tensor]) -> None:
        tensors[name][2] = float("nan")

    def counted(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.zeros(16, dtype=torch.long)

    def incomplete(tensors: dict[str, Tensor]) -> None:
        tensors.update({"a": tensors.pop(name), "b": torch.ones(1)})

    for change, message in (
        (damaged, "1 of the 16 numbers in model.layers.0.memory.query_proj.bias is NaN"),
        (counted, f"{name} has dtype int64, expected a floating-point type"),
        (incomplete, f"missing tensors: {name}; tensors without a place in the model: a, b"),
    ):
        with pytest.raises(ValueError, match=message):
            imported(with_tensors(tmp_path, golden, change))


def test_folders_that_are_none(golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "iter_0000001").mkdir()
    for folder, message in (
        (tmp_path / "nowhere", "nowhere is not a folder; --checkpoint must be a folder with config.json"),
        (tmp_path, "contains no config.json; it looks like a checkpoint of a run, for which there is the command exp"),
    ):
        with pytest.raises(ValueError, match=message):
            imported(folder)
    folder = write_released(tmp_path / "theirs", golden)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="theirs contains no weights: neither model.safetensors"):
        imported(folder)
    for text, message in (("{", "config.json is damaged"), ("[]", "not contain a JSON object"), ("{}", "without mem")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            imported(folder)


def test_tokenizers(golden: Golden, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tokenizers import Tokenizer, models

    folder = write_released(tmp_path / "theirs", golden)
    options = ImportOptions(str(folder), str(tmp_path / "ours"), "sakana", overwrite=True)
    with caplog.at_level(logging.WARNING, "megatron_fwpkm"):
        import_sakana(options)
    assert len(caplog.messages) == 1 and "contains no tokenizer.json" in caplog.messages[0]
    for size, fits in ((64, True), (65, False)):
        Tokenizer(models.WordLevel({str(n): n for n in range(size)}, "0")).save(str(folder / "tokenizer.json"))
        if fits:
            assert (import_sakana(options) / "tokenizer.json").is_file()
        else:
            with pytest.raises(ValueError, match="its tokenizer has ids up to 64, but the model has 64"):
                import_sakana(options)
    with pytest.raises(ValueError, match="ours already exists; give another --output, or use --overwrite"):
        import_sakana(ImportOptions(str(folder), str(tmp_path / "ours"), "sakana"))
