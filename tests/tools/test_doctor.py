"""The doctor's diagnosis of machines that do not exist, made of fake modules, and of this one."""

# ruff: noqa: E501 - a table of machines is read more easily with a line per machine

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from megatron_fwpkm.config.megatron_releases import SUPPORTED_MEGATRON, megatron_for_python
from megatron_fwpkm.libraries import probes
from megatron_fwpkm.libraries.probes import GRADIENT_KERNEL, Environment, import_quietly, numbers
from megatron_fwpkm.training.doctor import Diagnosis, examine, render

ROOT = Path(__file__).resolve().parents[2]


def fake_torch(*, gpus: int = 0, cuda: str | None = None, nccl: bool = True, gloo: bool = True, version="2.13.0"):
    torch = types.SimpleNamespace(__version__=version)
    card = types.SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30, major=9, minor=0)
    torch.version = types.SimpleNamespace(cuda=cuda)
    torch.cuda = types.SimpleNamespace(
        is_available=lambda: gpus > 0,
        device_count=lambda: gpus,
        get_device_properties=lambda index: card,
        nccl=types.SimpleNamespace(version=lambda: (2, 27, 5)),
    )
    torch.distributed = types.SimpleNamespace(
        is_available=lambda: True, is_nccl_available=lambda: nccl, is_gloo_available=lambda: gloo
    )
    return torch


HEALTHY = {
    "torch": fake_torch(),
    "triton": types.SimpleNamespace(__version__="3.9.0"),
    "megatron.core": types.SimpleNamespace(__version__=SUPPORTED_MEGATRON[0]),
    "megatron.core.models.gpt": types.SimpleNamespace(),
    "megatron.core.datasets.helpers_cpp": types.SimpleNamespace(),
    "sentencepiece": types.SimpleNamespace(__version__="0.2.3"),
    "transformers": types.SimpleNamespace(__version__="5.23.0"),
    "safetensors": types.SimpleNamespace(__version__="0.8.0"),
}
GPU = {"torch": fake_torch(gpus=8, cuda="13.0")}
ENGINE = {
    "transformer_engine": types.SimpleNamespace(__version__="2.11.0"),
    "transformer_engine.pytorch": types.SimpleNamespace(),
}
APEX = {"apex": types.SimpleNamespace(), "apex.optimizers": types.SimpleNamespace(), "amp_C": types.SimpleNamespace()}
KERNEL = {GRADIENT_KERNEL: types.SimpleNamespace()}


def diagnose(*changes: dict, without: tuple[str, ...] = (), python=(3, 12, 3)) -> Diagnosis:
    """Examine a machine that has HEALTHY with `changes`; a value that is an exception is raised by the import."""
    modules = {key: value for part in (HEALTHY, *changes) for key, value in part.items() if key not in without}

    def import_module(name: str):
        found = modules.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))
        if isinstance(found, Exception):
            raise found
        return found

    def version(name: str) -> str:
        if name in without or name not in {"apex": 0, "transformer_engine": 0}:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    there = set(modules) - set(without)
    environment = Environment(
        import_module=import_module, version=version, python=python,
        is_there=lambda name: name in there, hide=lambda name: modules.pop(name, None),
    )  # fmt: skip
    return examine(environment)


def choice(diagnosis: Diagnosis, part: str) -> str:
    return next(one.shown for one in diagnosis.choices if one.part == part)


def only_problem(diagnosis: Diagnosis):
    assert len(diagnosis.problems) == 1, diagnosis.problems
    return diagnosis.problems[0]


def test_a_healthy_cpu_machine():
    diagnosis = diagnose()
    assert diagnosis.can_train and diagnosis.problems == []
    assert choice(diagnosis, "memory") == "sparse"
    assert choice(diagnosis, "optimizer") == "torch AdamW"
    assert choice(diagnosis, "communication") == "gloo"
    assert choice(diagnosis, "device") == "CPU"
    assert "No problems." in render(diagnosis) and "Training can run here." in render(diagnosis)


def test_a_gpu_machine_without_triton_computes_the_memory_in_torch():
    diagnosis = diagnose(GPU, without=("triton",))
    assert choice(diagnosis, "memory") == "sparse"
    assert "only the rows in use, in torch; triton is absent" in render(diagnosis)


def test_a_gpu_machine_with_everything():
    diagnosis = diagnose(GPU, ENGINE, APEX, KERNEL)
    assert diagnosis.can_train and diagnosis.problems == []
    assert choice(diagnosis, "memory") == "triton"
    assert choice(diagnosis, "optimizer") == "Transformer Engine FusedAdam"
    assert choice(diagnosis, "communication") == "nccl"
    text = render(diagnosis)
    assert "8 x NVIDIA H200 139 GiB sm_90" in text
    assert "2.27.5" in text
    assert choice(diagnosis, "gradient fusion") == "on, fused_weight_gradient_mlp_cuda"


def test_apex_alone():
    diagnosis = diagnose(GPU, APEX)
    assert choice(diagnosis, "optimizer") == "Apex FusedAdam"
    assert choice(diagnosis, "gradient fusion") == "off"
    assert re.search("optimizer +Apex FusedAdam +Transformer Engine is not installed", render(diagnosis))


def test_the_screen_is_one_screen():
    text = render(diagnose(GPU, ENGINE, APEX, KERNEL))
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("changes", "what", "advice", "blocks"),
    [
        ({"transformer_engine": RuntimeError("libnvrtc is missing\nmore")},
         r"Transformer Engine is installed but does not import \(RuntimeError: libnvrtc is missing\)", "pip uninstall", False),
        ({"transformer_engine": ImportError("libcudart.so.13")}, "does not import", "pip uninstall transformer_engine", False),
        ({**ENGINE, "transformer_engine.pytorch": OSError("undefined symbol")}, "OSError: undefined symbol", "uninstall", False),
        ({**ENGINE, "transformer_engine": types.SimpleNamespace(__version__="2.12.0")},
         "Transformer Engine 2.12.0: megatron-core goes with 2.9 to below 2.12", "install 2.11", False),
        ({"apex": types.SimpleNamespace()}, "apex 1.2.3 is not NVIDIA's", "pip uninstall apex", False),
        ({"apex": SyntaxError("print 'x'")}, "apex is installed but does not work", "pip uninstall apex", False),
        ({key: APEX[key] for key in ("apex", "apex.optimizers")}, r"built without its CUDA kernels \(amp_C\)", "build it for", False),
        ({GRADIENT_KERNEL: OSError("libc10.so")}, f"{GRADIENT_KERNEL} is installed but does not work", "uninstall apex", False),
        ({"megatron.core": types.SimpleNamespace(__version__="0.15.0")},
         "megatron-core 0.15.0: this project is made for 0.16.1 and 0.19.2", "megatron-core==0.19.2", True),
        ({"megatron.core": RuntimeError("broken wheel")}, "megatron-core: RuntimeError: broken wheel", "==0.19.2", True),
        ({"megatron.core.models.gpt": RuntimeError("te")}, "megatron-core 0.16.1: RuntimeError: te", "==0.19.2", True),
        ({"torch": RuntimeError("libtorch")}, "^torch: RuntimeError: libtorch", "make setup", True),
        ({"torch": fake_torch(version="2.9.1")}, "torch 2.9.1: needs 2.10 or newer", "make setup", True),
        ({"torch": fake_torch(cuda="13.0")}, "torch is built for CUDA 13.0 but finds no GPU", "nvidia-smi", False),
        ({"torch": fake_torch(gpus=1, cuda="13.0", nccl=False)}, "a GPU is available but NCCL is not", "gloo", False),
        ({"torch": fake_torch(gloo=False)}, "neither gloo nor a usable NCCL", "official torch", True),
        ({"deepspeed": RuntimeError("no compiler")}, r"DeepSpeed does not import \(RuntimeError", "pip uninstall deepspeed", False),
        ({"sentencepiece": OSError("libsp")}, r"sentencepiece is broken \(OSError: libsp\)", "pip install sentencepiece", True),
    ],
)  # fmt: skip
def test_a_problem_is_named_with_advice(changes, what, advice, blocks):
    diagnosis = diagnose(changes)
    problem = only_problem(diagnosis)
    assert re.search(what, problem.what)
    assert advice in problem.advice
    assert problem.blocks_training is blocks
    assert diagnosis.can_train is not blocks
    assert problem.what in render(diagnosis)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("torch", True), ("megatron.core", True), ("sentencepiece", True), ("transformers", False), ("safetensors", False),
     ("triton", None), ("megatron.core.datasets.helpers_cpp", True)],
)  # fmt: skip
def test_what_is_absent(name, blocks):
    diagnosis = diagnose(without=(name,))
    if blocks is None:
        assert diagnosis.problems == []
    else:
        assert only_problem(diagnosis).blocks_training is blocks


def test_a_broken_driver():
    torch = fake_torch(gpus=1, cuda="13.0")

    def fail():
        raise RuntimeError("CUDA driver initialization failed")

    torch.cuda.is_available = fail
    problem = diagnose({"torch": torch}).problems[0]
    assert "CUDA fails: RuntimeError: CUDA driver initialization failed" in problem.what and problem.blocks_training


@pytest.mark.parametrize(
    ("python", "fine"), [((3, 11, 0), True), ((3, 12, 9), True), ((3, 13, 0), False), ((3, 10, 1), False)]
)
def test_python(python, fine):
    diagnosis = diagnose(python=python)
    assert diagnosis.can_train is fine
    if not fine:
        assert "is not supported" in only_problem(diagnosis).what


def test_a_dependency_that_is_missing_inside_a_package_is_not_absence():
    broken = diagnose({"transformers": ModuleNotFoundError("No module named 'regex'", name="regex")})
    assert "transformers is broken" in only_problem(broken).what


def test_imports_are_silent(capsys):
    def noisy(name):
        print("hello from", name)
        raise ValueError("no")

    loaded, error = import_quietly(Environment(import_module=noisy), "x")
    assert loaded is None and str(error) == "no"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("version", "found"), [("2.13.0+cpu", (2, 13, 0)), ("2.10.0a0", (2, 10, 0)), ("2.11.dev1", (2, 11)), ("", ())]
)
def test_numbers_of_a_version(version, found):
    assert numbers(version) == found


@pytest.mark.parametrize("version", [*SUPPORTED_MEGATRON, f"{SUPPORTED_MEGATRON[-1]}+52b2997"])
def test_each_supported_megatron_is_welcome(version):
    assert not diagnose({"megatron.core": types.SimpleNamespace(__version__=version)}).problems


@pytest.mark.parametrize(
    ("megatron", "engine", "status"),
    [("0.16.1", "2.11.0", "ok"), ("0.16.1", "2.15.0", "other version"), ("0.19.2", "2.15.0", "ok"),
     ("0.19.2", "2.21.0", "other version"), ("0.19.2+52b2997", "2.20.2", "ok"), ("0.19.2", "2.8.0", "other version")],
)  # fmt: skip
def test_each_megatron_has_its_range_of_transformer_engine(megatron, engine, status):
    modules = {**HEALTHY, **ENGINE, "transformer_engine": types.SimpleNamespace(__version__=engine)}
    environment = Environment(
        import_module=modules.get, version={"megatron-core": megatron}.__getitem__, python=(3, 12, 3),
        is_there=lambda name: name in modules,
    )  # fmt: skip
    found = probes._transformer_engine(environment)
    assert (found.version, found.status) == (engine, status)


@pytest.mark.parametrize(("python", "version"), [((3, 11, 7), "0.16.1"), ((3, 12, 1), "0.19.2")])
def test_the_supported_megatron_is_the_pinned_one(python, version):
    assert megatron_for_python(python) == version and version in SUPPORTED_MEGATRON
    marker = "<" if python < (3, 12) else ">="
    assert f'megatron-core=={version}; python_version {marker} "3.12"' in (ROOT / "constraints.txt").read_text()


def test_json_on_this_machine():
    run = subprocess.run(
        [sys.executable, "tools/doctor.py", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    report = json.loads(run.stdout)
    assert run.returncode == (0 if report["can_train"] else 1)
    assert {"findings", "choices", "problems", "can_train"} == set(report)
    assert next(one["version"] for one in report["findings"] if one["name"] == "python").startswith("3.1")
    assert report["can_train"], report["problems"]


def test_exit_status_1_where_training_cannot_run(monkeypatch, capsys):
    import tools.doctor
    from megatron_fwpkm.training import doctor

    ill = diagnose(without=("torch",))
    monkeypatch.setattr(doctor, "examine", lambda: ill)
    assert tools.doctor.main([]) == 1
    assert "Training cannot run here" in capsys.readouterr().out
