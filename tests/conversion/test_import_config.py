"""From a configuration to that of its export and back: no option of the model is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.checkpoint.checkpoint_reader import CheckpointContents
from megatron_fwpkm.checkpoint.compatibility import differences, flag_name
from megatron_fwpkm.config import ModelConfig, PretrainConfig
from megatron_fwpkm.config.field_metadata import NOT_COMPARED, TRAINING_ONLY, marked
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.conversion.export import hf_config
from megatron_fwpkm.conversion.import_config import (
    KIND_GROUPS,
    UNUSED_IN_TRAINING,
    imported_options,
    model_options,
    pattern_of,
)
from megatron_fwpkm.hf import FwPKMHFConfig
from tests.layers.megatron import STATIC_MEMORY, tiny
from tests.quick_cases import product_cases

ROOT = Path(__file__).resolve().parents[2]
PLACE = "hf/config.json"
NOT_IN_EXPORTS = {"reset"}
"""When training puts the initial memory back: a caller of the exported model decides that."""


def exported(config: PretrainConfig) -> FwPKMHFConfig:
    """The configuration of a checkpoint's export."""
    data = replace(config.data, tokenizer_type="NullTokenizer", vocab_size=59)
    contents = CheckpointContents(Path("x"), 7, replace(config, data=data), 60, 64, {}, {}, None)
    return hf_config(contents, "initial")


def back(config: PretrainConfig, words: tuple[str, ...] = ()) -> PretrainConfig:
    """A configuration after export and import."""
    return imported_options(exported(config), parsed(words), PLACE).config


parsed = cache(parse_pretrain)


def lost(before: PretrainConfig, after: PretrainConfig) -> list[str]:
    """Options of the model that differ, however they are spelled."""
    compared = {one.flag for one in differences(before, after)}
    found = []
    for group in ("model", *KIND_GROUPS):
        old, new = getattr(before, group), getattr(after, group)
        left_out = {*NOT_IN_EXPORTS, *marked(type(old), TRAINING_ONLY)}
        for name in (field.name for field in fields(old) if field.name not in left_out):
            differ = getattr(old, name) != getattr(new, name)
            if differ and (flag_name(group, name) in compared or name in marked(type(old), NOT_COMPARED)):
                found.append(f"{group}.{name}: {getattr(old, name)} is now {getattr(new, name)}")
    return found


LAYOUTS = sorted(path.name for path in (ROOT / "examples/paper/layouts").glob("*.yaml"))
MEMORIES = sorted(path.name for path in (ROOT / "examples/paper/memories").glob("*.yaml"))


@pytest.mark.parametrize(
    ("layout", "memory"),
    product_cases(
        LAYOUTS,
        MEMORIES,
        quick=lambda layout, memory: LAYOUTS.index(layout) % len(MEMORIES) == MEMORIES.index(memory),
    ),
)
def test_the_papers_models_come_back(layout: str, memory: str) -> None:
    paper = ROOT / "examples/paper"
    files = (paper / "base_112m.yaml", paper / "layouts" / layout, paper / "memories" / memory)
    words = tuple(word for file in files for word in ("--config", str(file)))
    config = parsed(words).config
    assert lost(config, back(config, words)) == []
    if config.fwpkm.pswa_probability:  # a window of training steps only, which the user's files say
        config = replace(config, model=replace(config.model, window_size=None))
    assert lost(config, back(config)) == []


VARIANTS: list[dict[str, Any]] = [
    {"model": {"layer_pattern": "gdn*2,fa"}},
    {"model": {"layer_pattern": "swa", "window_size": (5, 0), "num_query_groups": None}},
    {"model": {"rope_type": "yarn", "rotary_scaling_factor": 4.0, "yarn_original_max_position_embeddings": 16,
               "yarn_beta_fast": 20.0, "yarn_beta_slow": 2.0}},
    {"model": {"rope_type": "yarn", "rotary_scaling_factor": 2.0}},
    {"model": {"use_rope_scaling": True, "rope_scaling_factor": 32.0, "rotary_base": 500000.0}},
    {"model": {"ffn_hidden_size": None, "kv_channels": None, "add_bias_linear": True, "attention_output_gate": True}},
    {"pkm": {"layer_numbers": (1, 3), "topk": 3}, "layer_numbers": ()},
    {"fwmlp": {"layer_numbers": (1,), "inner_lr": 0.25, "gate": False, "boundary": "carry", "lookahead": 2}},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS)
def test_every_kind_comes_back(changes: dict[str, Any]) -> None:
    config = tiny(**changes)
    assert not problems(replace(config, training=replace(config.training, dry_run=True)))
    assert lost(config, back(config)) == []


def values_of_options() -> Iterator[tuple[str, str, Any]]:
    """(group, field, another value than the default) of every option of the model that is not for training only."""
    others: dict[str, Any] = {
        "num_layers": 6, "hidden_size": 64, "ffn_hidden_size": 96, "layer_pattern": "fa,swa:7,gdn",
        "num_attention_heads": 8, "num_query_groups": 1, "kv_channels": 16, "seq_length": 96,
        "max_position_embeddings": 77, "window_size": (9, 0), "rotary_percent": 0.5, "rope_type": "yarn",
        "norm_epsilon": 1e-6, "init_method_std": 0.3, "attention_dropout": 0.25, "hidden_dropout": 0.125,
        "layer_numbers": (1,), "score": "dot_product", "boundary": "carry", 
        "num_value_heads": 16, "num_key_heads": 8, "lookahead": 3, "topk": 3, "chunk_size": 12,
    }  # fmt: skip
    for group, cls in {"model": ModelConfig, **KIND_GROUPS}.items():
        for field in fields(cls):
            if field.name in {*marked(cls, TRAINING_ONLY), *NOT_IN_EXPORTS}:
                continue
            default = field.default
            if field.name in others:
                yield group, field.name, others[field.name]
            elif isinstance(default, bool):
                yield group, field.name, not default
            else:
                yield group, field.name, type(default)(default * 2) if default else 2  # type: ignore[call-overload, operator]


def test_every_option_of_the_model_comes_back() -> None:
    """One after the other, in a model that has layers of every kind."""
    start = tiny(
        model={"layer_pattern": "gdn,fa,swa", "window_size": (5, 0)}, layer_numbers=(2,), fwmlp={"layer_numbers": (3,)},
        pkm={"layer_numbers": (3,)},
    )  # fmt: skip
    told = 0
    for group, name, value in values_of_options():
        needed: dict[str, Any] = {"rope_type": {"rotary_scaling_factor": 4.0}}.get(name, {})
        if name.startswith("yarn_") or name == "rotary_scaling_factor":
            needed = {"rope_type": "yarn", "rotary_scaling_factor": 4.0}
        if name == "rope_scaling_factor":
            needed = {"use_rope_scaling": True}
        if name == "num_key_heads":
            needed = {"num_value_heads": 16}
        changed = replace(start, **{group: replace(getattr(start, group), **{**needed, name: value})})
        if name == "layer_pattern":
            changed = replace(changed, model=replace(changed.model, window_size=None))
        if group == "fwmlp" and name == "layer_numbers":
            changed = replace(changed, pkm=STATIC_MEMORY)
        found = back(changed)
        assert lost(changed, found) == [], (group, name)
        assert lost(start, found), f"{group}.{name} makes no difference: give it a value that does"
        told += 1
    assert told > 50


def test_every_field_of_an_export_is_used_or_known_to_be_of_no_use() -> None:
    """A new field of the exported configuration has a place in `model_options`, or a name in UNUSED_IN_TRAINING."""
    read: set[str] = set()

    class Watched(FwPKMHFConfig):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    own = {field.name for field in fields(FwPKMHFConfig)} - {field.name for field in fields(FwPKMHFConfig.__mro__[1])}
    watched = Watched(yarn_factor=4.0, yarn_original_length=8, rope_scaling_factor=None, training_length=9)
    read.clear()
    model_options(watched)
    assert own - read - {"vocab_size"} <= UNUSED_IN_TRAINING
    assert UNUSED_IN_TRAINING <= own and not UNUSED_IN_TRAINING & read


def test_patterns_are_short() -> None:
    assert pattern_of(["swa", "swa", "fa"] * 2, [4, 4, None] * 2) == "swa:3*2,fa"
    assert pattern_of(["gdn"] * 5, [None] * 5) == "gdn"
    assert pattern_of(["swa", "swa", "fa", "fa"], [1, 2, None, None]) == "swa:0,swa:1,fa*2"


@pytest.mark.parametrize("seed", range(3))
def test_any_pattern_gives_its_layers(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(100):
        total = draw.randint(1, 12)
        layers = [draw.choice([("fa", None), ("gdn", None), ("swa", 4), ("swa", 9)]) for _ in range(total)]
        pattern = pattern_of([mixer for mixer, _ in layers], [window for _, window in layers])
        model = ModelConfig(num_layers=total, layer_pattern=pattern)
        from megatron_fwpkm.config.layer_pattern import layer_mixers, layer_windows

        assert list(zip(layer_mixers(model), layer_windows(model), strict=True)) == [
            (mixer, None if window is None else window - 1) for mixer, window in layers
        ]


def test_options_of_a_file_that_contradict_the_export_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("hidden-size: 64\nlr: 0.5\nfwpkm-topk: 2\nnum-layers: 3\n")
    hf = exported(tiny())
    with pytest.raises(ValueError, match="contradict") as refused:
        imported_options(hf, parse_pretrain(["--config", str(file)]), PLACE)
    assert str(refused.value) == (
        f"options that contradict the export: --hidden-size 64 ({file}:1) is 32 in {PLACE}; --fwpkm-topk 2 ({file}:3) "
        f"is 4 in {PLACE}; remove them"
    )
    file.write_text("lr: 0.5\nnum-layers: 3\nfwpkm-reset: step\nlayer-pattern: swa:5,fa,swa\nwindow-size: 9,0\n")
    found = imported_options(hf, parse_pretrain(["--config", str(file)]), PLACE)
    assert (found.config.optimizer.lr, found.config.fwpkm.reset) == (0.5, "step")
    assert found.config.model.layer_pattern == "swa:5,fa,swa", "the user's own spelling of the same layers"
    assert found.value_sources["--hidden-size"] == PLACE and found.value_sources["--lr"] == f"{file}:1"
    file.write_text("layer-pattern: nonsense\n")
    with pytest.raises(ValueError, match="contradict the export: --layer-pattern nonsense: nonsense is not a token"):
        imported_options(hf, parse_pretrain(["--config", str(file)]), PLACE)


def test_a_model_that_pretraining_refuses_is_refused() -> None:
    hf = exported(tiny())
    hf.hidden_dropout = 1.5
    with pytest.raises(ValueError, match="hf/config.json: this model cannot be trained here: --hidden-dropout"):
        imported_options(hf, parse_pretrain([]), PLACE)
