"""The Dockerfile: pinned images, no root, the versions of FACTS and of constraints.txt."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.architecture.sources import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
STAGES = {match[2]: match[1] for match in re.finditer(r"^FROM (\S+) AS (\w+)$", TEXT, re.MULTILINE)}
BODIES = dict(zip(STAGES, re.split(r"^FROM .*$", TEXT, flags=re.MULTILINE)[1:], strict=True))


def test_both_images_are_pinned():
    assert STAGES == {"test": "python:3.11.14-slim-bookworm", "train": "nvcr.io/nvidia/pytorch:${NGC_RELEASE}-py3"}
    assert dict(re.findall(r"^ARG (\w+)=(.*)$", TEXT, re.MULTILINE)) == {"NGC_RELEASE": "25.11", "MCORE": "0.16.1"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_last_user_is_not_root(stage):
    users = re.findall(r"^USER (\S+)$", BODIES[stage], re.MULTILINE)
    assert users and users[-1] not in {"root", "0"}


def test_the_gpu_image_keeps_its_torch():
    body = BODIES["train"]
    assert 'PIP_CONSTRAINT=""' in body
    train = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert '--no-deps "megatron-core==${MCORE}"' in body
    # Every other requirement of training is named, so that nothing is missing for --no-deps.
    installed = re.search(r"grep -E '\^\(([^)]*)\)==' constraints.txt > train.txt", body)
    assert installed is not None
    names = {Requirement(text).name for text in train} - {"megatron-core"}
    assert names <= set(installed[1].split("|"))


def test_outputs_and_environments_stay_out():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv*", "runs", "**/__pycache__"} <= set(ignored)
