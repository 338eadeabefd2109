"""Whatever is damaged in an export, tools end with one line and exit status 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_fwpkm.conversion.export import export, hf_model
from megatron_fwpkm.evaluation.model_loading import load_model
from tests.layers.megatron import initialize
from tests.quick_cases import product_cases
from tests.tools.in_process import run_tool

from ..checkpoint.contents import contents_of, write_checkpoint
from .test_export_folder import IDENTITY, novel, train

pytestmark = pytest.mark.filterwarnings("ignore")
TABLE = "model.layers.1.memory.values"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's --save folder, with the tokenizer's file beside it."""
    initialize()
    root = tmp_path_factory.mktemp("run")
    (root / "tokenizer.model").write_bytes(train(novel(), **IDENTITY))
    write_checkpoint(root / "save", 500, 512, root / "tokenizer.model")
    export(root / "save", root / "hf")
    return root


@pytest.fixture(autouse=True)
def settings_of_tests() -> Iterator[None]:
    """Put back what the tool sets for its process: threads, determinism, parallel state."""
    initialize()
    yield
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    initialize()


@pytest.fixture
def damaged(run: Path, tmp_path: Path) -> Path:
    """A copy of the export, to be damaged."""
    return Path(shutil.copytree(run / "hf", tmp_path / "bad"))


def without_table(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(TABLE)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut(name: str, size: int = 40) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def replaced(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def changed(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | fields))

    return change


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (cut("model.safetensors"), "model.safetensors is truncated"),
    (cut("model.safetensors", 0), "model.safetensors has 0 bytes"),
    (without_table, f"model.safetensors: the tensor {TABLE} is missing"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    (cut("config.json"), "config.json is damaged: it does not contain a JSON object"),
    (replaced("config.json", "[]"), "config.json is damaged: it does not contain a JSON object"),
    (replaced("config.json", '{"model_type": "gpt2"}'), "model_type in config.json is 'gpt2', not 'fwpkm'"),
    (changed(rope_theta=0), "rope_theta=0 and rope_parameters="),
    (changed(num_hidden_layers=10**7), "num_hidden_layers=10000000 must be"),
    (replaced("generation_config.json", "[]"), "generation_config.json is damaged"),
    (lambda folder: (folder / "config.json").unlink(), "contains no config.json"),
]  # fmt: skip


# Of every kind of damage one is quick.
@pytest.mark.parametrize("case", product_cases(range(len(DAMAGE)), quick={0, 2, 3, 6, 9, 10}.__contains__))
def test_tools_say_what_is_damaged_in_one_line(
    case: int, run: Path, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGE[case]
    damage(damaged)
    generated = run_tool(capsys, "generate_text", "--model", damaged, "--prompt", "It is", "--device", "cpu")
    verified = run_tool(capsys, "convert_checkpoint", "verify", "--checkpoint", run / "save", "--export", damaged)
    for done in (generated, verified):
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
        assert done.stderr.startswith("error: ") and (message in done.stderr or "run.json" in done.stderr)
    assert message in verified.stderr


@pytest.mark.parametrize("how", ["", "{", "[]", "{}"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_one_line(
    name: str, how: str, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if (name, how) == ("tokenizer_config.json", "{}"):
        return  # which is a tokenizer without special tokens
    (damaged / name).write_text(how)
    done = run_tool(capsys, "generate_text", "--model", damaged, "--prompt", "It is", "--device", "cpu")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"{damaged}: its tokenizer cannot be read (" in done.stderr
    if name == "tokenizer.json":
        with pytest.raises(ValueError, match=r"tokenizer.json is not a Hugging Face tokenizer: "):
            load_model(str(damaged), "cpu")


def test_another_models_tokenizer_is_refused(run: Path, damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ids would end in an index error; and without tokenizer.json another conversion would be used."""
    content = json.loads((damaged / "tokenizer.json").read_text())
    content["model"]["vocab"]["qqqq"] = 700
    (damaged / "tokenizer.json").write_text(json.dumps(content))
    done = run_tool(capsys, "generate_text", "--model", damaged, "--prompt", "It is", "--device", "cpu")
    assert done.returncode == 1
    assert "its tokenizer has ids up to 700, but the model has 500 token embeddings" in done.stderr
    (damaged / "tokenizer.json").unlink()
    done = run_tool(capsys, "generate_text", "--model", damaged, "--prompt", "It is", "--device", "cpu")
    assert done == (1, "", f"error: {damaged / 'tokenizer.json'} is missing; copy the folder again, or export again\n")


def test_verify_names_the_iteration_of_an_export(run: Path, damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An export of another iteration is told at once."""
    assert json.loads((damaged / "config.json").read_text())["fwpkm_iteration"] == 7
    command = ("convert_checkpoint", "verify", "--checkpoint", run / "save", "--export", damaged, "--lengths", 1)
    changed(fwpkm_iteration=5)(damaged)
    done = run_tool(capsys, *command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"{damaged} was exported from iteration 5, but " in done.stderr
    assert "iter_0000007 is iteration 7; set --checkpoint to the folder iter_0000005, or export again" in done.stderr


@pytest.mark.slow
def test_an_export_that_names_no_iteration_is_compared(
    run: Path, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(fwpkm_iteration=None)(damaged)
    command = ("verify", "--checkpoint", run / "save", "--export", damaged, "--lengths", 1)
    assert run_tool(capsys, "convert_checkpoint", *command).returncode == 0


def test_an_export_of_an_earlier_version_still_loads(
    run: Path, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the fields and files that came later, and with EOS for padding."""
    content = json.loads((damaged / "config.json").read_text())
    for later in ("fwpkm_iteration", "pad_token_id"):
        del content[later]
    (damaged / "config.json").write_text(json.dumps(content))
    for file in ("tokenizer_config.json", "generation_config.json"):
        told = json.loads((damaged / file).read_text())
        told.pop("pad_token", None)
        told.pop("pad_token_id", None)
        (damaged / file).write_text(json.dumps(told))
    for file in ("config_checks.py", "weight_checks.py"):
        (damaged / file).unlink()
    generated = run_tool(capsys, "generate_text", "--model", damaged, "--prompt", "It is", "--max-new-tokens", 3)
    assert generated.returncode == 0, generated.stderr
    command = ("verify", "--checkpoint", run / "save", "--export", damaged, "--lengths", 1)
    assert run_tool(capsys, "convert_checkpoint", *command).returncode == 0


def test_a_checkpoint_that_diverged_is_not_exported(run: Path) -> None:
    from tests.layers.megatron import tiny

    contents = contents_of(tiny(), vocab_size=60, padded=64)
    contents.slow["decoder.final_layernorm.weight"][3] = float("nan")
    with pytest.raises(ValueError, match="iter_0000007: 1 of the 32 numbers in model.norm.weight is NaN"):
        hf_model(contents)
    contents = contents_of(tiny(), vocab_size=60, padded=64)
    contents.fast[2].tables["values"][0, 0] = float("inf")
    with pytest.raises(ValueError, match="1 of the .* numbers in model.layers.1.memory.values"):
        hf_model(contents, fast_weights="trained")
    assert torch.isfinite(hf_model(contents, fast_weights="initial").model.layers[1].memory.values).all()
