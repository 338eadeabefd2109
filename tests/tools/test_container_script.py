"""What the script that builds the container's stage `test` takes from this machine, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tools.container.pip_configuration import settings, write_configuration

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools/container/build_test_stage.sh"


def test_the_configuration_of_pip_goes_into_the_build(tmp_path):
    wheels, index = tmp_path / "wheels", tmp_path / "index/simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    listing = f"""global.timeout='60'
:env:.find-links='{wheels}'
global.find-links='/elsewhere'
global.extra-index-url='file://{index}\\nhttps://example.com/simple'
global.cert='/not/there.crt'
"""
    mounts = write_configuration(settings(listing), tmp_path / "pip.conf")
    assert (tmp_path / "pip.conf").read_text().splitlines() == [
        "[global]", "timeout = 60", f"find-links = {wheels}",
        f"extra-index-url = file://{index} https://example.com/simple", "cert = /not/there.crt",
    ]  # fmt: skip
    # The files of an index lie beside its pages; what does not exist cannot be mounted.
    assert mounts == [
        f"--volume={tmp_path}/pip.conf:/etc/pip.conf:ro", f"--volume={index.parent}:{index.parent}:ro",
        f"--volume={wheels}:{wheels}:ro",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "programs", "message"),
    [(["--suit", "x"], "", "unknown argument --suit; known are --suite, --mirror, --folder and --"),
     (["--mirror"], "", "--mirror needs a value"),
     ([], "", "debootstrap was not found; apt-get install buildah debootstrap git python3-pip"),
     ([], "debootstrap buildah git python3 id", "debootstrap and buildah need root here; run it with sudo")],
)  # fmt: skip
def test_what_the_script_refuses(arguments, programs, message, tmp_path):
    for name in programs.split():
        (tmp_path / name).write_text("#!/bin/sh\necho 1000\n")  # above all what `id -u` answers
        (tmp_path / name).chmod(0o755)
    run = subprocess.run(
        ["/bin/bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 1 and run.stderr == f"error: {message}\n"
