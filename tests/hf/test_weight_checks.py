"""Damaged weights are refused by file and tensor, as plain users of Transformers load them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel, dynamic_module_utils

from megatron_fwpkm.conversion.bundle import AUTO_MAP, write_bundle
from megatron_fwpkm.hf import FwPKMForCausalLM

from .builders import small_model, token_ids

VALUES = "model.layers.1.memory.values"


def saved(folder: Path, shards: bool = False, **changes: Any) -> FwPKMForCausalLM:
    """A model as an export holds it, whole or in files of 5 kB."""
    model = small_model(dtype=torch.float32, **changes)
    model.config.auto_map = dict(AUTO_MAP)
    model.save_pretrained(folder, max_shard_size="5KB" if shards else "1GB")
    write_bundle(folder)
    return model


def loaded(folder: Path, **options: Any) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)
    return model


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Transformers copies and imports the code of exports: not into the user's cache, nor for other tests."""
    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dynamic_module_utils, "HF_MODULES_CACHE", folder)
        yield
    sys.path[:] = [path for path in sys.path if path != folder]
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no table": (lambda t: t.pop(VALUES), f"model.safetensors: the tensor {VALUES} is missing; the weights are"),
    "two missing": (
        lambda t: (t.pop(VALUES), t.pop("model.norm.weight")), f"safetensors: {VALUES} and 1 more tensor are missing",
    ),
    "one more": (lambda t: t.update(x=torch.ones(1)), "safetensors: the tensor x is not part of this model"),
    "shape": (
        lambda t: t.update({VALUES: torch.ones(60, 12)}),
        rf"safetensors: {VALUES} has shape \[60, 12\], but this configuration needs \[64, 12\]",
    ),
    "integers": (
        lambda t: t.update({VALUES: torch.ones(64, 12, dtype=torch.int64)}), f"safetensors: {VALUES} has dtype I64",
    ),
    "NaN": (lambda t: t[VALUES][3, 4:6].fill_(float("nan")), f"safetensors: 2 of the 768 numbers in {VALUES} are"),
    "infinity": (
        lambda t: t["model.norm.weight"][5].fill_(float("-inf")), "1 of the 16 numbers in model.norm.weight is NaN or",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_tensors_are_refused(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    change, message = DAMAGE[name]
    edit(tmp_path, change)
    for options in ({}, {"dtype": torch.bfloat16}):
        with pytest.raises(ValueError, match=message) as caught:
            loaded(tmp_path, **options)
        assert "\n" not in str(caught.value)


def test_weights_too_large_for_float16_are_refused_there_only(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, lambda t: t["model.norm.weight"][5].fill_(70_000.0))
    assert loaded(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="1 of the 16 .*, or another dtype than float16, whose largest .* 65,504"):
        loaded(tmp_path, dtype=torch.float16)


def test_other_shapes_begin_anew_only_when_asked(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, lambda t: t.update({VALUES: torch.ones(60, 12)}))
    model = loaded(tmp_path, ignore_mismatched_sizes=True)
    assert model.get_buffer(VALUES).shape == (64, 12) and model.get_buffer(VALUES).std() > 0.1


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "model.safetensors has 0 bytes and is not a safetensors file"),
        (7, "model.safetensors has 7 bytes and is not a safetensors file"),
        (900, "model.safetensors is truncated: it has 900 bytes, but its header alone needs 3,..."),
        (-1, "model.safetensors has .* bytes instead of .*: it is truncated or damaged"),
    ],
)
def test_a_file_cut_short_is_refused(size: int, message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{message}.*; copy the folder again, or export again$"):
        loaded(tmp_path)
    file.write_bytes(b"\x10" + bytes(7) + b"not JSON at all." + bytes(99))
    with pytest.raises(ValueError, match="model.safetensors is damaged: its header is not that of a safetensors file"):
        loaded(tmp_path)
    header = b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=r"'a' has 4 bytes, but its shape \[9\] of F32 needs 36\)"):
        loaded(tmp_path)


def test_shards(tmp_path: Path) -> None:
    """A file that is missing, cut, or of another index."""
    model = saved(tmp_path, shards=True)
    assert torch.equal(loaded(tmp_path).get_buffer(VALUES), model.get_buffer(VALUES))
    first, second = sorted(tmp_path.glob("model-0000[12]*"))
    kept = first.read_bytes(), second.read_bytes()
    first.unlink()
    with pytest.raises(ValueError, match="model-00001-of-.* is missing, but model.safetensors.index.json lists it"):
        loaded(tmp_path)
    first.write_bytes(kept[0])
    second.write_bytes(kept[1][:-4])
    with pytest.raises(ValueError, match="model-00002-of-.* it is truncated or damaged"):
        loaded(tmp_path)
    second.write_bytes(kept[0])
    with pytest.raises(ValueError, match="00002-of-.* does not contain .*, but model.safetensors.index.json lists"):
        loaded(tmp_path)
    for text in ("{", "[]", '{"weight_map": 3}', "{}"):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match="index.json is damaged: it (is not a JSON index of weights|does not)"):
            loaded(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_whole_still_loads(tied: bool, tmp_path: Path) -> None:
    """With other dtypes, loading information, without the output layer, and in parts."""
    model, ids = saved(tmp_path, tie_word_embeddings=tied), token_ids(1, 20)
    with torch.no_grad():
        again = loaded(tmp_path)
        assert torch.equal(again(ids).logits, model(ids).logits)
        hidden = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)(ids).last_hidden_state
        assert torch.equal(hidden, model.model(ids).last_hidden_state)
    half, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, trust_remote_code=True, dtype=torch.bfloat16, output_loading_info=True
    )
    assert half.get_buffer(VALUES).dtype == torch.float32 and half.dtype == torch.bfloat16
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = FwPKMForCausalLM.from_pretrained(None, config=model.config, state_dict=state)
    assert torch.equal(given.get_buffer(VALUES), model.get_buffer(VALUES))
    state.pop(VALUES)
    with pytest.raises(ValueError, match=f"the state_dict: the tensor {VALUES} is missing"):
        FwPKMForCausalLM.from_pretrained(None, config=model.config, state_dict=state)
    if not tied:
        edit(tmp_path, lambda t: t.pop("lm_head.weight"))
        with pytest.raises(ValueError, match="the tensor lm_head.weight is missing"):
            loaded(tmp_path)


def test_a_damaged_configuration_is_one_error(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"fwpkm_num_subkeys": 9}))
    with pytest.raises(ValueError, match=r"memory.sub_keys has shape \[1, 2, 8, 4\], but .* needs \[1, 2, 9, 4\]"):
        loaded(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_theta": 0}))
    with pytest.raises(ValueError, match="rope_theta=0 and rope_parameters="):
        loaded(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\u00ff"])
def test_a_damaged_generation_config_is_refused(content: str, tmp_path: Path) -> None:
    """Transformers would go on without it."""
    saved(tmp_path)
    (tmp_path / "generation_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="generation_config.json is damaged: it does not contain a JSON object"):
        loaded(tmp_path)


def test_fresh_weights_have_the_range_of_the_paper() -> None:
    """Sub-keys within key_dim^-1/2 on both sides, values with deviation value_dim^-1/2, linears 0.02, norms 0."""
    torch.manual_seed(0)
    changes = {"fwpkm_num_subkeys": 64, "fwpkm_key_dim": 64, "fwpkm_value_dim": 16, "hidden_size": 64}
    memory = FwPKMForCausalLM(small_model(**changes).config).model.layers[1].memory
    assert memory.sub_keys.min() == pytest.approx(-(64**-0.5), rel=1e-2)
    assert memory.sub_keys.max() == pytest.approx(64**-0.5, rel=1e-2)
    assert memory.sub_keys.mean().abs() < 0.01
    assert memory.values.std() == pytest.approx(0.25, rel=0.02) and memory.values.mean().abs() < 0.01
    assert memory.query_proj.weight.detach().std() == pytest.approx(0.02, rel=0.1)
    assert not memory.query_norm.weight.any() and not memory.query_proj.bias.any()
