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


def test_both_images_are_pinned_by_tag_and_digest():
    assert STAGES == {"test": "${PYTHON_IMAGE}", "train": "${NGC_IMAGE}"}
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", TEXT, re.MULTILINE))
    digest = "@sha256:[0-9a-f]{64}"
    assert re.fullmatch(f"python:3.11.14-slim-bookworm{digest}", arguments["PYTHON_IMAGE"])
    assert re.fullmatch(f"nvcr.io/nvidia/pytorch:25.11-py3{digest}", arguments["NGC_IMAGE"])
    assert arguments["MCORE"] == "0.16.1"


@pytest.mark.parametrize("stage", STAGES)
def test_the_last_user_is_not_root(stage):
    users = re.findall(r"^USER (\S+)$", BODIES[stage], re.MULTILINE)
    assert users and users[-1] not in {"root", "0"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_doctor_watches_the_health(stage):
    checked = re.search(r'^HEALTHCHECK .* CMD \["\S*python", "tools/doctor.py", "--quick"(.*)\]$', BODIES[stage], re.M)
    assert checked is not None and checked[1] == (', "--require-gpu"' if stage == "train" else "")


@pytest.mark.parametrize("stage", STAGES)
def test_a_change_of_the_code_keeps_the_environment(stage):
    """What installs packages stands before the line that copies the code."""
    before, after = re.split(r"^COPY --chown=fwpkm:fwpkm \. \.$", BODIES[stage], flags=re.MULTILINE)
    assert re.search("make setup|pip install --no-build-isolation --constraint", before)
    assert "make setup" not in after and after.count("pip install") == after.count("--no-deps --editable .")
    assert not re.search(r"^COPY .*(README|CHANGELOG|docs|tests)", before, re.MULTILINE)


def test_the_gpu_image_keeps_its_torch():
    body = BODIES["train"]
    assert 'PIP_CONSTRAINT=""' in body
    assert "DS_BUILD_OPS=0" in body and "--no-build-isolation" in body  # DeepSpeed asks the image's torch
    train = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert '--no-deps "megatron-core==${MCORE}"' in body
    # Every other requirement of training is named, so that nothing is missing for --no-deps.
    installed = re.search(r"grep -E '\^\(([^)]*)\)==' constraints.txt > \S+/train.txt", body)
    assert installed is not None
    names = {Requirement(text).name for text in train} - {"megatron-core"} | {"deepspeed"}
    assert names <= set(installed[1].split("|"))


def test_outputs_and_environments_stay_out():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv*", "runs", "site", "**/__pycache__"} <= set(ignored)
