"""Advice about flags that do not exist here."""

from __future__ import annotations

import re

import pytest

from megatron_fwpkm.config.loading import option_groups
from megatron_fwpkm.config.megatron_flags import MEGATRON_FLAGS
from megatron_fwpkm.config.usage import advice

NAMES = [option.name for _, _, found in option_groups() for option in found]


def test_advice_about_flags_of_megatron_names_options_that_exist():
    assert not set(MEGATRON_FLAGS) & set(NAMES)
    named = {flag for text in MEGATRON_FLAGS.values() for flag in re.findall(r"--([a-z][a-z0-9-]*)", text)}
    assert named and named <= set(NAMES)
    assert not [text for text in MEGATRON_FLAGS.values() if text.endswith(".")]


@pytest.mark.parametrize("name", ["attention-softmax-in-fp32", "save-dir", "tp-size", "max-steps", "zzzzzz"])
def test_what_is_far_from_every_option_gets_no_suggestion(name):
    assert advice(name, NAMES) == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [("subkeys", "fwpkm-num-subkeys"), ("seq-len", "seq-length"), ("lr-warmup-steps", "lr-warmup-iters"),
     ("no-qk-layer-norm", "qk-layernorm")],
)  # fmt: skip
def test_what_is_near_gets_one(name, meant):
    assert advice(name, NAMES, "--") == f"; did you mean --{meant}?"
