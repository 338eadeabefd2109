"""The laws hold in this repository."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.architecture import laws
from tests.architecture.sources import ROOT, python_sources, room, shipped_sources, text_files


def check_none(violations: list[str]) -> None:
    """Fail with every violation on a line of its own."""
    assert not violations, "\n" + "\n".join(violations)


def test_rooms_import_only_what_they_may():
    program = str(Path(sys.executable).parent / "lint-imports")
    run = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("module", ["megatron_fwpkm", "megatron_fwpkm.config"])
def test_configuration_starts_without_torch(module):
    program = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'megatron.core'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_ops_do_not_communicate():
    check_none(laws.communication(room("ops")))


def test_collectives_of_the_layers_stand_in_one_file():
    check_none(laws.communication(s for s in room("layers") if s.parts[-1] != "table_sharding.py"))


def test_hf_imports_torch_transformers_and_itself():
    check_none(laws.hf_strangers(room("hf")))


def test_no_hidden_globals():
    check_none(laws.hidden_globals(shipped_sources()))


def test_no_file_is_too_long():
    check_none(laws.long_files(python_sources()))


def test_no_function_is_too_long():
    check_none(laws.long_functions(python_sources()))


def test_everything_public_is_documented():
    check_none(laws.undocumented(shipped_sources()))


def test_docstrings_say_something():
    check_none(laws.empty_docstrings(shipped_sources()))


def test_parallel_groups_stay_behind_the_engine():
    check_none(laws.megatron_groups(shipped_sources()))


def test_one_module_knows_how_releases_of_megatron_differ():
    check_none(laws.megatron_releases(python_sources()))


def test_names_in_docstrings_stand_in_single_backticks():
    check_none(laws.foreign_markup(shipped_sources()))


def test_imports_within_the_package_are_relative():
    check_none(laws.absolute_imports(shipped_sources()))


SHARED = {
    "attention.py": "a kind has a module in every room",
    "reference.py": "every operation has its oracle",
    "key_steps.py": "the steps of a driver in torch and in Triton",
    "value_steps.py": "the same",
    "run.py": "the run of a tool or an evaluation, in its own folder",
    "base.py": "what the other modules of a folder build on",
    "build.py": "which one of a folder's classes is made",
}
"""Names that several places share, and why."""


def test_a_name_has_one_meaning():
    check_none(laws.shared_names([s for s in shipped_sources() if s.parts[0] == "megatron_fwpkm"], SHARED))


def test_entry_points_only_parse_and_call():
    check_none(laws.fat_entry_points(python_sources()))


def test_nothing_is_left_unfinished():
    check_none(laws.unfinished(text_files()))


def test_no_path_of_one_machine():
    check_none(laws.machine_paths(text_files()))


def test_every_test_can_fail():
    check_none(laws.tests_that_cannot_fail(python_sources()))


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_every_dependency_is_pinned_within_its_range(python):
    def valid(lines):
        found = [Requirement(line) for line in lines if line and not line.startswith("#")]
        return [one for one in found if one.marker is None or one.marker.evaluate({"python_version": python})]

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {}
    for line in valid((ROOT / "constraints.txt").read_text().splitlines()):
        (pin,) = line.specifier
        assert pin.operator == "==" and line.name not in pins
        pins[line.name.lower().replace("_", "-")] = pin.version
    for requirement in valid(project["dependencies"] + sum(project["optional-dependencies"].values(), [])):
        pin = pins.get(requirement.name.lower().replace("_", "-"))
        assert pin is not None, f"{requirement} has no line in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement}, but constraints.txt has {pin}"
    wanted = re.search(r"^torch_version=(.*)$", (ROOT / "tools/setup.sh").read_text(), re.MULTILINE)
    assert wanted is not None and wanted[1] == pins["torch"]


def test_every_imported_package_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    declared = {Requirement(text).name.lower() for text in named}
    ours = {"megatron_fwpkm", "tests", "benchmarks", "tools", "pretrain"}
    installed = packages_distributions()
    for source in python_sources():
        for name in laws.imported_packages(source) - ours:
            distributions = {found.lower() for found in installed.get(name, [name])}
            assert distributions & declared, f"{source.path} imports {name}, which pyproject.toml does not name"


def test_continuous_integration_runs_the_tests_and_nothing_else():
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in script if line and not line.startswith(("#", "set ", "cd "))] == ["make test"]
