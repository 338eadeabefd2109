"""What a grid trains, and how it may be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.parameter_counts import num_parameters
from megatron_fwpkm.config.plot_style import SERIES
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.evaluation.ablation.grid import command_words, read_grid
from tests.architecture.sources import ROOT
from tests.quick_cases import product_cases

WHOLE = {
    "base": "base.yaml",
    "seeds": [1, 2],
    "reference": "none",
    "axes": {
        "memory": {"none": None, "fwpkm": {"fwpkm-layer-numbers": [2], "fwpkm-gate": False}},
        "window": {"short": {"window-size": "3,0"}, "long": {"window-size": "15,0"}},
    },
}


def write(folder: Path, **changes: object) -> Path:
    (folder / "base.yaml").write_text("num-layers: 2\n")
    content = {key: value for key, value in (WHOLE | changes).items() if value is not None}
    (folder / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "grid.yaml"


def test_every_combination_with_every_seed_in_turn(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path))
    trials = list(grid.trials())
    names = [trial.name for trial in trials]
    assert names[:4] == ["none_short_seed1", "none_long_seed1", "fwpkm_short_seed1", "fwpkm_long_seed1"]
    assert names[4:] == [name.replace("seed1", "seed2") for name in names[:4]]
    assert trials[3].flags == {"fwpkm-layer-numbers": [2], "fwpkm-gate": False, "window-size": "15,0"}
    words = "--fwpkm-layer-numbers 2 --no-fwpkm-gate --window-size 15,0"
    assert " ".join(command_words(trials[3].flags)) == words
    assert grid.base == tmp_path / "base.yaml" and grid.first_axis == "memory" and grid.cpu_seconds is None
    assert read_grid(write(tmp_path, **{"cpu-seconds": 90})).cpu_seconds == 90.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": None}, "lacks the key base"),
        ({"basis": 1}, "has the unknown key basis; the keys are base, seeds"),
        ({"base": "other.yaml"}, "other.yaml does not exist"),
        ({"seeds": [1, 1]}, "contains the same seed twice"),
        ({"seeds": [True]}, r"seeds \[True\] must be a list of integers"),
        ({"seeds": []}, "must be a list of integers"),
        ({"reference": "nothing"}, "reference 'nothing' is not a choice: none, fwpkm"),
        ({"axes": {}}, "axes must contain at least one axis"),
        ({"axes": {"memory": {}}}, "the axis memory must contain at least one choice"),
        ({"axes": {"memory": {"a/b": {}}}}, "the choice 'a/b' must consist of letters"),
        ({"axes": {"memory": {"none": 3}}}, "the choice none must contain flags"),
        ({"axes": WHOLE["axes"] | {"third": {"x": {"window-size": 1}}}}, "window and third both set window-size"),
        ({"cpu-seconds": 0}, "cpu-seconds 0 must be a number above 0"),
    ],
)
def test_what_is_no_grid(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    path = write(tmp_path, **{key: value for key, value in changes.items() if value is not None})
    if None in changes.values():
        path.write_text(yaml.safe_dump({key: value for key, value in WHOLE.items() if key not in changes}))
    with pytest.raises(ValueError, match=said):
        read_grid(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--grid .* cannot be read: No such file"):
        read_grid(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match="is not YAML"):
        read_grid(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="must contain the keys base, seeds, axes, reference"):
        read_grid(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    "file",
    product_cases(sorted((ROOT / "examples" / "ablation").glob("grid*.yaml")), quick=lambda path: path.stem == "grid"),
    ids=lambda path: path.stem,
)
def test_the_examples_can_be_trained(file: Path) -> None:
    grid = read_grid(file)
    assert len(grid.axes[grid.first_axis]) <= len(set(SERIES)) == len(SERIES), "two choices would have one colour"
    data = ["--data-path", "corpus", "--tokenizer-model", "tokenizer.model", "--save", "somewhere"]
    for trial in grid.trials():
        config = parse_pretrain(["--config", str(grid.base), *data, *command_words(trial.flags)]).config
        assert list(problems(config, 1)) == []
    parameters = {
        trial.choices[0]: num_parameters(
            parse_pretrain(["--config", str(grid.base), *data, *command_words(trial.flags)]).config, 2048
        )
        for trial in grid.trials()
        if "pkm-layer-numbers" not in trial.flags  # its table is trained by the optimizer and counts
    }
    least, most = min(parameters.values()), max(parameters.values())
    assert most < 1.005 * least, f"the choices of the first axis are not of equal size: {parameters}"
