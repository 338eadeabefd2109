"""Command line and YAML to one configuration, with origins."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.loading import COMMAND_LINE, DEFAULT, Resolved, option_groups, parse_pretrain
from tests.quick_cases import examples

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write text to run.yaml in the working directory; returns its name."""
    monkeypatch.chdir(tmp_path)

    def to_file(text: str, name: str = "run.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return to_file


def config_of(*argv: str) -> PretrainConfig:
    return parse_pretrain(argv).config


def test_without_arguments_all_is_default():
    resolved = parse_pretrain([])
    assert resolved.config == PretrainConfig()
    assert set(resolved.value_sources.values()) == {DEFAULT}
    assert len(resolved.value_sources) == sum(len(found) for _, _, found in option_groups())


def test_command_line_wins_over_file_over_default(write):
    path = write("# a comment\nlr: 2e-4\nfwpkm_topk: 4\nfwpkm-layer-numbers: [3, 7]\n")
    resolved = parse_pretrain(["--config", path, "--fwpkm-topk", "16", "--bf16"])
    assert resolved.config.optimizer.lr == 2e-4
    assert resolved.config.fwpkm.topk == 16
    assert resolved.config.fwpkm.layer_numbers == (3, 7)
    assert resolved.config.training.bf16
    assert resolved.value_sources["--lr"] == "run.yaml:2"
    assert resolved.value_sources["--fwpkm-topk"] == COMMAND_LINE
    assert resolved.value_sources["--fwpkm-layer-numbers"] == "run.yaml:4"
    assert resolved.value_sources["--min-lr"] == DEFAULT


def test_a_value_equal_to_the_default_still_has_its_origin(write):
    resolved = parse_pretrain(["--config", write("bf16: false\n"), "--lr", "0.001"])
    assert resolved.value_sources["--bf16"] == "run.yaml:1"
    assert resolved.value_sources["--lr"] == COMMAND_LINE


def test_later_files_win(write):
    first, second = write("lr: 1.0\nseed: 1\n", "a.yaml"), write("lr: 2.0\n", "b.yaml")
    resolved = parse_pretrain(["--config", first, "--config", second])
    assert (resolved.config.optimizer.lr, resolved.config.training.seed) == (2.0, 1)
    assert (resolved.value_sources["--lr"], resolved.value_sources["--seed"]) == ("b.yaml:1", "a.yaml:2")


@pytest.mark.parametrize(
    ("text", "group", "field", "value"),
    [
        ("lr: 1e-3", "optimizer", "lr", 1e-3),  # text for YAML 1.1
        ("lr: 1", "optimizer", "lr", 1.0),
        ("num-layers: '6'", "model", "num_layers", 6),
        ("bf16: yes", "training", "bf16", True),
        ("fwpkm-gate: off", "fwpkm", "gate", False),
        ("window-size: 511,0", "model", "window_size", (511, 0)),
        ("window-size: '511,0'", "model", "window_size", (511, 0)),
        ("window-size: [511, 0]", "model", "window_size", (511, 0)),
        ("window-size:\n  - 511\n  - 0", "model", "window_size", (511, 0)),
        ("window-size: none", "model", "window_size", None),
        ("layer-pattern: swa:3,fa*2", "model", "layer_pattern", "swa:3,fa*2"),
        ("fwpkm-layer-numbers: 3", "fwpkm", "layer_numbers", (3,)),
        ("fwpkm-layer-numbers: []", "fwpkm", "layer_numbers", ()),
        ("fwpkm-layer-numbers: none", "fwpkm", "layer_numbers", ()),
        ("ffn-hidden-size: null", "model", "ffn_hidden_size", None),
        ("ffn-hidden-size: none", "model", "ffn_hidden_size", None),
        ("ffn-hidden-size:", "model", "ffn_hidden_size", None),
        ("save: 'none'", "checkpoint", "save", "none"),
        ("save: 2026", "checkpoint", "save", "2026"),
        ("data-path: corpus", "data", "data_path", ("corpus",)),
        ("data-path: [0.5, a b, 0.5, c]", "data", "data_path", ("0.5", "a b", "0.5", "c")),
        ("split: 90,5,5", "data", "split", "90,5,5"),
        ("", "model", "num_layers", 12),
        ("# nothing", "model", "num_layers", 12),
    ],
)
def test_yaml_values(write, text, group, field, value):
    assert getattr(getattr(config_of("--config", write(text)), group), field) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nfwpkm-lookhead: 2", r"^run.yaml:2: unknown option fwpkm-lookhead; did you mean fwpkm-lookahead\?"),
        ("topk: 8", r"^run.yaml:1: unknown option topk; did you mean fwpkm-topk\?"),
        ("zzzzzz: 8", r"^run.yaml:1: unknown option zzzzzz$"),
        ("--lr: 8", r"^run.yaml:1: write lr without the leading dashes"),
        ("no-bf16: true", r"^run.yaml:1: write `bf16: false` instead of no-bf16"),
        ("config: other.yaml", r"^run.yaml:1: a file cannot include another file; give --config several times"),
        ("lr: 1\n\nlr: 2", r"^run.yaml:3: lr is given twice \(first on line 1\); remove one"),
        ("fwpkm-topk: 1\nfwpkm_topk: 2", r"^run.yaml:2: fwpkm-topk is given twice \(first on line 1\)"),
        ("fwpkm:\n  topk: 8", r"^run.yaml:1: fwpkm is a nested mapping.*write `fwpkm-topk: ...` without indentation"),
        ("optimizer:\n  lr: 8", r"^run.yaml:1: optimizer is a nested mapping.*write `lr: ...` without indentation"),
        ("lr: fast", r"^run.yaml:1: lr: 'fast' is not a number"),
        ("num-layers: 1.5", r"^run.yaml:1: num-layers: '1.5' is not an integer"),
        ("num-layers: [4]", r"^run.yaml:1: num-layers: expected integer, but got a list"),
        ("num-layers:", r"^run.yaml:1: num-layers: has no value; give one \(integer\), or remove the line"),
        ("bf16: 1", r"^run.yaml:1: bf16: '1' is neither true nor false"),
        ("save: true", r"^run.yaml:1: save: expected text, but got true; put it in quotes"),
        ("lr-decay-style: cosin", r"^run.yaml:1: lr-decay-style: 'cosin' is not one of constant, linear, cosine, WSD"),
        ("fwpkm-layer-numbers: 3 7", r"^run.yaml:1: fwpkm-layer-numbers: write several values as a list: \[3, 7\]"),
        ("fwpkm-layer-numbers: 3,7", r"^run.yaml:1: fwpkm-layer-numbers: write several values as a list: \[3, 7\]"),
        ("swiglu: true", r"^run.yaml:1: unknown option swiglu: this is always on; remove it"),
        ("fwpkm-layer-numbers: [3, x]", r"^run.yaml:1: fwpkm-layer-numbers: 'x' is not an integer"),
        ("fwpkm-layer-numbers: [[3]]", r"^run.yaml:1: fwpkm-layer-numbers: expected integer, but got a list"),
        ("data-path:\n  - a: b", r"^run.yaml:2: data-path: expected text, but got a mapping"),
        ("window-size: [1, 2, 3]", r"^run.yaml:1: window-size: '1,2,3' is not a pair of integers like 127,0"),
        ("window-size: 127", r"^run.yaml:1: window-size: '127' is not a pair of integers like 127,0"),
        ("lr: [1", r"^run.yaml:\d: is not YAML"),
        ("lr: 1\n\tseed: 2", r"^run.yaml:2: is not YAML"),
        ("lr: 1\n---\nlr: 2", r"^run.yaml:\d: is not YAML: but found another document"),
        ("- lr", r"^run.yaml:1: a configuration must consist of lines `name: value`"),
        ("just text", r"^run.yaml:1: a configuration must consist of lines"),
        ("[a, b]: 1", r"^run.yaml:1: a name must be a single word"),
        ("lr: \x01", r"^run.yaml: is not YAML"),
    ],
)
def test_wrong_yaml_names_file_and_line(write, text, message):
    with pytest.raises(ValueError, match=message):
        parse_pretrain(["--config", write(text)])


def test_a_file_that_is_not_text(write, tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"lr: \xff\xfe")
    with pytest.raises(ValueError, match="run.yaml: is not UTF-8 text: invalid start byte at byte 4"):
        parse_pretrain(["--config", "run.yaml"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fwpkm-lookhead", "2"], "unknown flag --fwpkm-lookhead; did you mean --fwpkm-lookahead?"),
        (["--topk=2"], "unknown flag --topk; did you mean --fwpkm-topk?"),
        (["--fwpkm_topk", "2"], "unknown flag --fwpkm_topk; did you mean --fwpkm-topk?"),
        (["--confg", "x"], "unknown flag --confg; did you mean --config?"),
        (["run.yaml"], "unexpected argument 'run.yaml': every option is a flag; did you mean --config run.yaml?"),
        (["--lr", "fast"], "error: --lr 'fast' is not a number"),
        (["--bf16", "true"], "--bf16 true: a switch takes no value; write --bf16 or --no-bf16"),
        (["--no-bf16=true"], "--no-bf16=true: a switch takes no value; write --bf16 or --no-bf16"),
        (["--fwpkm-layer-numbers", "2,3"], "--fwpkm-layer-numbers '2,3' must be written with spaces: 2 3"),
        (["--use-flash-attn"], "unknown flag --use-flash-attn: attention always uses PyTorch's"),
        (["--no-load-optim"], "unknown flag --no-load-optim: use --load with --finetune instead"),
        (["--num-layer-widths", "3"], "unknown flag --num-layer-widths\n"),
        (
            ["--swiglu", "--bf16", "true", "--topk", "3", "--seed", "1", "run.yaml"],
            "4 invalid arguments:\n  - --bf16 true: a switch takes no value; write --bf16 or --no-bf16\n"
            "  - unknown flag --swiglu: this is always on; remove it\n"
            "  - unknown flag --topk; did you mean --fwpkm-topk?\n"
            "  - unexpected argument 'run.yaml'",
        ),
    ],
)
def test_wrong_usage_leaves_with_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_pretrain(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_yaml_reads_back_with_origins(write):
    argv = [
        "--config",
        write("lr: 1e-5\nbf16: true\n"),
        "--window-size",
        "23,0",
        "--layer-pattern",
        "swa:3,fa*2",
        "--data-path",
        "0.3",
        "a: b #c",
    ]
    resolved = parse_pretrain(argv)
    text = resolved.to_yaml()
    assert config_of("--config", write(text, "saved.yaml")) == resolved.config
    assert "\nlr: 1.0e-05  # run.yaml:1\n" in text
    assert '\nwindow-size: "23,0"  # command line\n' in text
    assert "\nseed: 1234  # default\n" in text
    loaded = yaml.safe_load(text)  # any YAML reader sees the same
    assert loaded["lr"] == 1e-5 and loaded["bf16"] is True and loaded["save"] is None
    assert loaded["data-path"] == ["0.3", "a: b #c"]


_texts = st.text(st.characters(codec="utf-8"), max_size=12)
_numbers = st.floats(allow_nan=False, allow_infinity=False)


@examples(6, 30, HealthCheck.function_scoped_fixture)
@given(
    lr=_numbers,
    size=st.integers(),
    split=_texts,
    save=st.none() | _texts,
    paths=st.lists(_texts).map(tuple),
    layers=st.lists(st.integers()).map(tuple),
    window=st.none() | st.tuples(st.integers(), st.integers()),
    vocab=st.none() | st.integers(),
    bf16=st.booleans(),
)
def test_every_configuration_reads_back(write, lr, size, split, save, paths, layers, window, vocab, bf16):
    start = PretrainConfig()
    config = replace(
        start,
        model=replace(start.model, num_layers=size, window_size=window),
        optimizer=replace(start.optimizer, lr=lr),
        fwpkm=replace(start.fwpkm, layer_numbers=layers),
        data=replace(start.data, split=split, data_path=paths, vocab_size=vocab),
        checkpoint=replace(start.checkpoint, save=save),
        training=replace(start.training, bf16=bf16),
    )
    text = Resolved(config, parse_pretrain([]).value_sources).to_yaml()
    assert config_of("--config", write(text)) == config


def test_all_groups_are_options():
    assert [name for name, _, _ in option_groups()] == [group.name for group in fields(PretrainConfig)]


def test_help_is_fast_and_teaches():
    start = time.perf_counter()
    script = "import sys; from megatron_fwpkm.config.loading import parse_pretrain as p\ntry: p(['--help'])\nfinally: "
    check = "print('HEAVY', {'torch', 'numpy', 'rich'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script + check], cwd=ROOT, capture_output=True, text=True, timeout=100)
    elapsed = time.perf_counter() - start
    assert run.returncode == 0, run.stderr
    assert "HEAVY set()" in run.stdout
    assert elapsed < 50  # a second on an idle machine
    for piece in ("Model:", "FwPKM:", "--no-bf16", "examples:", "--dry-run", "(default: 0.001)", "torchrun"):
        assert piece in run.stdout, piece
    assert "--data-path runs/mine/corpus_text_document " in run.stdout  # what preprocess_data.py calls it


def test_megatrons_two_spellings_of_the_schedulers_flags() -> None:
    for spelt in ("opt_param", "opt-param"):
        config = parse_pretrain([f"--use-checkpoint-{spelt}-scheduler", f"--no-override-{spelt}-scheduler"]).config
        assert config.checkpoint.use_checkpoint_opt_param_scheduler
        assert config.checkpoint.override_opt_param_scheduler is False
    assert parse_pretrain([]).config.checkpoint.override_opt_param_scheduler is None


def test_a_configuration_that_cannot_be_read_is_named_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--config nowhere.yaml: the file does not exist; give the path of a YAML"):
        parse_pretrain(["--config", "nowhere.yaml"])
    with pytest.raises(ValueError, match=r"^--config \S+: Is a directory; give the path of a YAML file of flags"):
        parse_pretrain(["--config", str(tmp_path)])
