"""The doctor as a container's health check: what it finds in a second, and when its exit status is 1."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from megatron_fwpkm.config.megatron_releases import SUPPORTED_MEGATRON
from megatron_fwpkm.libraries.probes import Environment
from megatron_fwpkm.training.doctor import Diagnosis, examine_quickly, render, require_gpu
from tests.tools.test_doctor import fake_torch

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = {
    "megatron-core": SUPPORTED_MEGATRON[0], "sentencepiece": "0.2.3", "transformers": "5.24.0", "safetensors": "0.8.0",
}  # fmt: skip


def diagnose(torch=None, **versions: str) -> Diagnosis:
    """Examine a machine whose packages have these versions; an empty one is not installed."""
    known = VERSIONS | {name.replace("_", "-"): version for name, version in versions.items()}
    modules = {"torch": torch or fake_torch()}

    def version(name: str) -> str:
        if not known[name]:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    # A KeyError for any module but torch: nothing else is imported.
    return examine_quickly(Environment(import_module=modules.__getitem__, version=version, python=(3, 12, 3)))


def no_context(torch):
    """A torch whose GPUs may be counted but not opened, for that takes memory from the run they belong to."""
    torch.cuda.get_device_properties = None
    return torch


@pytest.mark.parametrize("torch", [fake_torch(), no_context(fake_torch(gpus=8, cuda="13.0"))])
def test_a_healthy_machine(torch):
    diagnosis = diagnose(torch)
    assert diagnosis.can_train and not diagnosis.problems
    assert "Training can run here." in render(diagnosis) and "A run here will use" not in render(diagnosis)


@pytest.mark.parametrize(
    ("versions", "what", "blocks"),
    [({"megatron_core": "0.15.0"}, "megatron-core 0.15.0: this project is made for", True),
     ({"megatron_core": ""}, "megatron-core: not installed", True),
     ({"sentencepiece": ""}, "sentencepiece is not installed", True),
     ({"safetensors": ""}, "safetensors is not installed", False)],
)  # fmt: skip
def test_what_does_not_go_together(versions, what, blocks):
    diagnosis = diagnose(**versions)
    assert what in diagnosis.problems[0].what and diagnosis.can_train is not blocks


def test_a_container_that_has_lost_its_gpus():
    lost = diagnose(fake_torch(gpus=0, cuda="13.0"))
    assert lost.can_train and "finds no GPU, so runs use the CPU" in lost.problems[0].what
    assert not require_gpu(lost).can_train
    assert "torch finds no GPU, and --require-gpu was given" in render(require_gpu(lost))
    assert "--gpus all when it starts" in render(require_gpu(lost))


def test_a_gpu_that_is_there():
    assert require_gpu(diagnose(fake_torch(gpus=1, cuda="13.0"))).can_train


def test_a_broken_driver_is_named_once():
    def fail():
        raise RuntimeError("CUDA driver initialization failed")

    torch = fake_torch(gpus=1, cuda="13.0")
    torch.cuda.is_available = fail
    diagnosis = require_gpu(diagnose(torch))
    assert not diagnosis.can_train
    assert [problem.what for problem in diagnosis.problems] == [
        "CUDA fails: RuntimeError: CUDA driver initialization failed"
    ]


def test_on_this_machine():
    """As a health check runs it: without a GPU the exit status is 1 only if one is required."""
    def run(*flags: str) -> types.SimpleNamespace:
        return subprocess.run(
            [sys.executable, "-X", "importtime", "tools/doctor.py", "--quick", *flags], cwd=ROOT, capture_output=True,
            text=True, timeout=100, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip

    found, required = run(), run("--require-gpu")
    assert (found.returncode, required.returncode) == (0, 1), found.stdout + required.stdout
    assert "megatron.core" not in found.stderr and "transformers" not in found.stderr
