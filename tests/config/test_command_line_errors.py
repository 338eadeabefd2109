"""Advice about flags that do not exist here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_fwpkm.config.command_line_errors import advice, complaints_of_unknown
from megatron_fwpkm.config.familiar_names import FAMILIAR_NAMES, familiar_name
from megatron_fwpkm.config.loading import option_groups, parse_pretrain
from megatron_fwpkm.config.megatron_families import FAMILIES
from megatron_fwpkm.config.megatron_flags import MEGATRON_FLAGS, megatron_advice
from tools.convert_checkpoint import main as convert

OPTIONS = {option.name: option for _, _, found in option_groups() for option in found}
NAMES = [*OPTIONS]
THEIRS = (Path(__file__).parent / "megatron_lm_flags.txt").read_text().splitlines()[1:]


def is_ours(name: str) -> bool:
    """Whether a name is taken by our parser, the --no- form of a switch included."""
    switched = OPTIONS.get(name.removeprefix("no-"))
    return name in OPTIONS or (name.startswith("no-") and switched is not None and switched.is_boolean)


def test_every_flag_of_megatron_is_an_option_or_has_advice():
    names = [flag.removeprefix("--").replace("_", "-") for flag in THEIRS]
    assert len(names) > 850
    silent = [name for name in names if not is_ours(name) and megatron_advice(name) is None]
    assert not silent, f"say in config/megatron_flags.py what to do instead of: {' '.join(silent)}"
    guesses = [name for name in names if not is_ours(name) and "did you mean" in advice(name, NAMES, "--")]
    assert not guesses


def test_no_advice_hides_an_option():
    assert not [name for name in NAMES if megatron_advice(name) is not None]


def test_every_family_has_a_flag_of_megatron():
    names = {flag.removeprefix("--").replace("_", "-") for flag in THEIRS}
    bare = names | {name.removeprefix(form) for name in names for form in ("no-", "disable-")}
    for words in FAMILIES.values():
        for word in words.split():
            begins = word.endswith("*") and any(name.startswith(word[:-1]) for name in bare)
            assert begins or word in bare, word


def test_advice_about_flags_of_megatron_names_options_that_exist():
    texts = [*MEGATRON_FLAGS.values(), *FAMILIES]
    named = {flag for text in texts for flag in re.findall(r"--([a-z][a-z0-9-]*)", text)}
    assert named and not [name for name in named if not is_ours(name) and name != "config"]
    assert not [text for text in texts if text.endswith(".")]


def test_advice_of_a_family_and_of_a_switched_off_flag():
    assert advice("moe-router-topk", NAMES, "--") == ": mixture-of-experts layers are not supported; remove it"
    assert advice("no-position-embedding", NAMES, "--").startswith(": position embeddings are always")
    assert advice("disable-tp-comm-split-rs", NAMES, "--").startswith(": Transformer Engine is used with its own")


def test_a_misspelt_flag_of_megatron_is_not_taken_for_another_option():
    text = advice("no-position-embeddings", NAMES, "--")
    assert text.startswith("; did you mean Megatron-LM's --no-position-embedding? position embeddings are always")


@pytest.mark.parametrize("name", ["drop-path", "zzzzzz", "tial", "pecial"])
def test_what_is_far_from_every_option_gets_no_suggestion(name):
    assert advice(name, NAMES) == ""


def test_a_negative_value_is_no_flag():
    def advise(name: str) -> str:
        return advice(name, NAMES, "--")

    assert complaints_of_unknown(["--loss-scale", "-1"], ["--loss-scale", "-1"], advise, None) == [
        f"unknown flag --loss-scale: {megatron_advice('loss-scale')}"
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("subkeys", "fwpkm-num-subkeys"), ("addressing", "fwpkm-addressing-weight"), ("seq-len", "seq-length"),
     ("lr-warmup-steps", "lr-warmup-iters"),
     ("no-qk-layer-norm", "qk-layernorm"), ("learning-rate", "lr"), ("per-device-train-batch-size", "micro-batch-size"),
     ("save-dir", "save"), ("tp-size", "tensor-model-parallel-size"), ("max-steps", "train-iters")],
)  # fmt: skip
def test_what_is_near_gets_one(name, meant):
    assert advice(name, NAMES, "--") == f"; did you mean --{meant}?"


def test_familiar_names_hide_no_option_and_no_answer():
    theirs = [name for names in FAMILIAR_NAMES.values() for name in names.split()]
    assert not [name for name in theirs if megatron_advice(name) is not None]
    tool_flags = {"max-new-tokens", "model", "prompt", "input", "output", "output-prefix", "workers", "json-keys",
                  "checkpoint", "export"}  # fmt: skip
    assert set(FAMILIAR_NAMES) <= {*NAMES, *tool_flags}


def test_a_familiar_name_stands_for_an_option_of_the_same_program():
    assert familiar_name("max-length", NAMES) == "seq-length"
    assert familiar_name("max-length", ["max-new-tokens"]) == "max-new-tokens"
    assert familiar_name("max-length", ["input"]) is None


@pytest.mark.parametrize(
    ("parse", "words", "said"),
    [
        (parse_pretrain, ["--lr"], "pretrain.py: error: --lr needs a value\n"),
        (parse_pretrain, ["--config"], "pretrain.py: error: --config needs a value\n"),
        (parse_pretrain, ["--learning_rate", "1"], "error: unknown flag --learning_rate; did you mean --lr?\n"),
        (convert, [], "error: export or import or verify is required\n"),
        (convert, ["exprt"], "error: 'exprt' is not one of export, import, verify\n"),
        (convert, ["export"], "error: --checkpoint and --output are required\n"),
        (
            convert,
            ["export", "--load", "X", "--output", "o"],
            "2 invalid arguments:\n  - unknown flag --load; did you mean --checkpoint?\n  - --checkpoint is required\n",
        ),
        (
            convert,
            ["--load", "X", "export"],
            "2 invalid arguments:\n  - unknown flag --load\n  - 'X' is not one of export, import, verify\n",
        ),
        (
            convert,
            ["--load"],
            "2 invalid arguments:\n  - unknown flag --load\n  - export or import or verify is required\n",
        ),
        (
            parse_pretrain,
            ["junk.yaml", "--lr", "x", "--learnin-rate", "1", "--train-iters", "ten", "--bf16=yes"],
            "5 invalid arguments:\n  - --bf16=yes: a switch takes no value; write --bf16 or --no-bf16\n"
            "  - unexpected argument 'junk.yaml': every option is a flag; did you mean --config junk.yaml?\n"
            "  - unknown flag --learnin-rate\n"
            "  - --lr 'x' is not a number\n  - --train-iters 'ten' is not an integer\n",
        ),
    ],
)
def test_an_error_of_argparse_is_a_sentence(parse, words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(words)
    assert capsys.readouterr().err.endswith(said)
