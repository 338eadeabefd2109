"""A damaged configuration is refused by its field, wherever it is damaged; what is not refused works."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_fwpkm.hf import FwPKMForCausalLM, FwPKMHFConfig, FwPKMModel
from megatron_fwpkm.hf.config_checks import NUMBERS, SWITCHES, WORDS
from megatron_fwpkm.hf.rope_fields import SPELLINGS
from tests.quick_cases import examples

from .builders import small_config, small_model, token_ids

CASES: list[tuple[dict[str, Any], str]] = [
    ({"fwpkm_lookahead": -1}, "fwpkm_lookahead=-1 must be an integer of at least 0"),
    ({"fwpkm_lookahead": 10**9}, "fwpkm_lookahead=1000000000 must be below fwpkm_chunk_size=8"),
    ({"fwpkm_inner_lr": 1e30}, r"fwpkm_inner_lr=1e\+30 must be a finite number of at least 0 and at most 100"),
    ({"fwpkm_inner_lr": math.nan}, "fwpkm_inner_lr=nan must be a finite number"),
    ({"fwpkm_addressing_weight": math.inf}, "fwpkm_addressing_weight=inf must be a finite number"),
    ({"fwpkm_chunk_size": 0}, "fwpkm_chunk_size=0 must be an integer of at least 1 and at most 1,048,576"),
    ({"fwpkm_topk": 0}, "fwpkm_topk=0 must be an integer of at least 1"),
    ({"fwpkm_topk": 9}, "fwpkm_topk=9 must be at most fwpkm_num_subkeys=8"),
    ({"fwpkm_topk": True}, "fwpkm_topk=True must be an integer"),
    ({"fwpkm_key_dim": 7}, "fwpkm_key_dim=7 must be even"),
    ({"fwpkm_value_dim": 1}, "fwpkm_value_dim=1 cannot be z-scored"),
    ({"fwpkm_score": "cosine"}, "fwpkm_score='cosine' is not known; choose one of: idw, dot_product"),
    ({"fwpkm_boundary": "keep"}, "fwpkm_boundary='keep' is not known"),
    ({"fwpkm_memory": "best"}, "fwpkm_memory='best' is not known"),
    ({"fwpkm_layers": [2]}, r"fwpkm_layers contains 2, but the layers are numbered from 0 to 1"),
    ({"fwpkm_layers": [-1]}, "fwpkm_layers contains -1; every entry must be an integer of at least 0"),
    ({"fwpkm_layers": [1, 1]}, r"fwpkm_layers=\[1, 1\] contains 1 more than once"),
    ({"fwpkm_layers": 1}, "fwpkm_layers=1 must be a list"),
    ({"fwpkm_lokahead": 1}, "fwpkm_lokahead is not a field of this configuration; it may be misspelled"),
    ({"fwpkm_num_subkeys": 10**7}, "fwpkm_num_subkeys=10000000, fwpkm_value_dim=12 would need 4,800,000,000,000,000"),
    ({"vocab_size": 10**13}, "vocab_size=10000000000000, hidden_size=16 would need 640,000,000,000,000 bytes"),
    ({"num_hidden_layers": 10**7}, "num_hidden_layers=10000000 must be .* at most 10,000"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers='2' must be an integer"),
    ({"num_hidden_layers": 3, "token_mixers": ["swa"] * 3}, "attention_windows has length 2, .*num_hidden_layers=3"),
    ({"attention_windows": [0, 3]}, "attention_windows contains 0; every entry must be an integer of at least 1"),
    ({"attention_windows": [3], "token_mixers": ["swa", "swa"]}, "attention_windows has length 1"),
    ({"token_mixers": ["fa"]}, "token_mixers has length 1, .* \\(num_hidden_layers=2\\)"),
    ({"token_mixers": ["swa", "fa"]}, "attention_windows contains 6 for layer 1, but its token mixer 'fa' "),
    (
        {"token_mixers": ["swa", "swa"], "attention_windows": [6, None]},
        "attention_windows contains None for layer 1, whose token mixer 'swa' needs a window",
    ),
    ({"token_mixers": ["swa", 3]}, "token_mixers contains 3; every entry must be a name"),
    ({"num_attention_heads": 0}, "num_attention_heads=0 must be an integer of at least 1"),
    ({"num_key_value_heads": 0}, "num_key_value_heads=0 must be an integer of at least 1"),
    ({"num_key_value_heads": 3}, "num_attention_heads=4 is not divisible by num_key_value_heads=3"),
    ({"head_dim": None, "hidden_size": 18}, "hidden_size=18 is not divisible by num_attention_heads=4; .* head_dim"),
    ({"head_dim": 10**400}, "head_dim=1000.* must be an integer of at least 1 and at most 1,048,576"),
    ({"head_dim": 6}, "head_dim=6 times partial_rotary_factor=0.5 rotates 3 channels"),
    ({"partial_rotary_factor": 0.1}, "head_dim=4 times partial_rotary_factor=0.1 rotates 0 channels"),
    ({"rope_theta": 0}, "rope_theta=0 must be a finite number above 1"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling=.* has no factor, which rope_type 'yarn' needs; give it"),
    ({"yarn_factor": 0.5}, "yarn_factor=0.5 must be a finite number of at least 1"),
    ({"yarn_factor": 4}, "yarn_factor=4 needs yarn_original_length"),
    ({"yarn_factor": 4, "rope_scaling_factor": 8.0}, "yarn_factor=4 and rope_scaling_factor=8.0 both stretch"),
    (
        {"yarn_factor": 4, "training_length": 8, "yarn_beta_fast": 1},
        "yarn_beta_fast=1 must be above yarn_beta_slow=1.0: more turns are faster",
    ),
    ({"rope_scaling_factor": 0.5}, "rope_scaling_factor=0.5 must be a finite number of at least 1"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps=0.0 must be a finite number above 0"),
    ({"hidden_dropout": 1.0}, "hidden_dropout=1.0 must be a finite number of at least 0 and below 1"),
    ({"qk_norm": "false"}, "qk_norm='false' must be True or False"),
    ({"use_cache": None}, "use_cache=None must be True or False"),
    ({"max_position_embeddings": 0}, "max_position_embeddings=0 must be an integer of at least 1, or None"),
    ({"eos_token_id": [2, 64]}, r"eos_token_id=64 must be a token id from 0 to 63 \(vocab_size=64\), or None"),
    ({"pad_token_id": -1}, "pad_token_id=-1 must be a token id from 0 to 63"),
    ({"dtype": "float99"}, "dtype='float99' is not known; choose one of: float16, bfloat16, float32, float64"),
    ({"dtype": "int8"}, "dtype='int8' is not known"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder=True is not supported"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model."""
    path = tmp_path_factory.mktemp("saved")
    small_model(dtype=torch.float32).save_pretrained(path)
    return path


@pytest.mark.parametrize(("changes", "message"), CASES)
def test_a_damaged_configuration_is_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    """Made by hand, from a dictionary and from an edited config.json."""
    with pytest.raises(ValueError, match=message):
        small_config(**changes)
    content = {name: value for name, value in small_config().to_dict().items() if name not in SPELLINGS} | changes
    with pytest.raises(ValueError, match=message):
        FwPKMHFConfig.from_dict(dict(content))
    (folder / "config.json").write_text(json.dumps(content))  # NaN and Infinity, which are no JSON, are refused as such
    with pytest.raises(ValueError, match=f"{message}|is not a number of JSON"):
        FwPKMForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("model", [FwPKMForCausalLM, FwPKMModel])
def test_a_configuration_changed_after_it_was_made_is_refused(model: type, folder: Path) -> None:
    config = small_config()
    config.fwpkm_chunk_size = 0
    with pytest.raises(ValueError, match="fwpkm_chunk_size=0 must be an integer"):
        model(config)
    small_config().save_pretrained(folder)
    for keywords in ({"fwpkm_topk": 0}, {"fwpkm_topk": 9}):
        with pytest.raises(ValueError, match="fwpkm_topk=. "):
            FwPKMHFConfig.from_pretrained(folder, **keywords)
        with pytest.raises(ValueError, match="fwpkm_topk=. "):
            model.from_pretrained(folder, **keywords)  # type: ignore[attr-defined]


def test_every_field_is_checked() -> None:
    """A new field of a plain kind must join a table, or be named here with the rule that checks it."""
    elsewhere = {"token_mixers", "mlps", "attention_windows", "fwpkm_layers", "fwmlp_layers"}
    elsewhere |= {"pad_token_id", "bos_token_id", "eos_token_id", "fwpkm_drawn_tables"}
    own = {name for name in FwPKMHFConfig.__annotations__ if name not in ("model_type", "keys_to_ignore_at_inference")}
    assert own - elsewhere <= {*NUMBERS, *SWITCHES, *WORDS}


def test_configuration_has_usable_defaults() -> None:
    config = FwPKMHFConfig()
    assert (config.num_key_value_heads, config.head_dim, config.fwpkm_layers) == (12, 64, [])
    again = FwPKMHFConfig.from_dict(small_config(max_position_embeddings=99, eos_token_id=[2, 3]).to_dict())
    assert again.to_dict() == small_config(max_position_embeddings=99, eos_token_id=[2, 3]).to_dict()


VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, "", "4", "true", math.nan, math.inf, -math.inf, [], [None], {}, -1, 0, 0.5, 1.0]
    ),
    st.integers(-3, 70),
    st.sampled_from([10**12, 2**63, 10**400, -(10**12), 1e30, 1e-30, -0.5, 100, 1000.0]),
    st.lists(st.one_of(st.integers(-2, 9), st.none(), st.text(max_size=2)), max_size=3),
)
FIELDS = sorted({*NUMBERS, *SWITCHES, *WORDS, "token_mixers", "attention_windows", "fwpkm_layers", "eos_token_id"})


@given(st.sampled_from(FIELDS), VALUES)
@examples(120, 400)
def test_whatever_is_not_refused_works(field: str, value: Any) -> None:
    """One damaged field: an error that names it, or a model with finite logits."""
    values = small_config().to_dict() | {field: value}
    try:
        config = FwPKMHFConfig.from_dict(values)
    except ValueError as error:
        assert field in str(error) and "\n" not in str(error)
        return
    except Exception as error:  # some releases of Transformers look at their own fields first
        assert type(error).__name__ == "StrictDataclassFieldValidationError" and field in str(error)
        return
    torch.manual_seed(0)
    model, ids = FwPKMForCausalLM(config).double().eval(), token_ids(1, 30) % config.vocab_size
    with torch.no_grad():
        for use_cache in (True, False):
            assert model(ids, use_cache=use_cache, return_dict=True).logits.isfinite().all()
