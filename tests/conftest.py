"""Settings of every test: one thread, quiet imports, the CPU layer under Megatron, and the reference vectors."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch and megatron.core are imported by any test module, and inherited by every process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault(
    "PYTHONWARNINGS", "ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning"
)

# A test's device is chosen, not found: without TEST_DEVICE=cuda no GPU is visible, here and in what tests start.
DEVICE = os.environ.setdefault("TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Triton asks once, when it is imported, whether its kernels are to be compiled or run by its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
MEGATRON_ROOMS = {"layers", "models", "training", "checkpoint", "integration"}
GOLDEN_FOLDERS = (ROOT / "tests" / "goldens", ROOT.parent / "shared" / "goldens")

torch.set_num_threads(1)
# A shell that runs pytest in the background has it ignore Ctrl-C, and the programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# `make test` must give one answer for one commit; `make test-all` looks for new examples, and prints how to repeat one.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("fixed")


@dataclass(frozen=True)
class Golden:
    """One case of the reference vectors: tensors by name, and what goldens.json says about the case."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def golden_names(prefix: str = "") -> list[str]:
    """Names of the cases at hand that begin with `prefix`, for parametrize; empty where there are none."""
    return sorted({file.stem for folder in GOLDEN_FOLDERS for file in folder.glob(f"{prefix}*.safetensors")})


@pytest.fixture(scope="session")
def goldens() -> Callable[[str], Golden]:
    """`goldens(name)` loads a case from tests/goldens or ../shared/goldens; skips the test where neither has it."""
    from safetensors.torch import load_file

    def load(name: str) -> Golden:
        for folder in GOLDEN_FOLDERS:
            if (folder / f"{name}.safetensors").is_file():
                meta = json.loads((folder / "goldens.json").read_text())[name]
                return Golden(load_file(folder / f"{name}.safetensors"), meta)
        pytest.skip(f"no reference vectors {name} on this machine")

    return load


@pytest.fixture(scope="session")
def cpu_compat() -> None:
    """Lets megatron.core run without CUDA; tests of the Megatron rooms get it without asking."""
    from megatron_fwpkm.distributed import megatron_on_cpu

    megatron_on_cpu.install()


def pytest_configure() -> None:
    """Refuse a device that is not there: every GPU test would be skipped, and the session green."""
    if DEVICE not in ("cpu", "cuda"):
        raise pytest.UsageError(f"TEST_DEVICE={DEVICE} is not known; choose one of: cpu, cuda")
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("TEST_DEVICE=cuda, but torch sees no CUDA device: unset it to test on the CPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the Megatron rooms the CPU layer, and run a GPU's tests on a GPU, all others on the CPU."""
    others = pytest.mark.skip(reason="needs a GPU: TEST_DEVICE=cuda" if DEVICE == "cpu" else "runs on the CPU only")
    for item in items:
        room = item.path.relative_to(ROOT / "tests").parts[0]
        if room in MEGATRON_ROOMS and isinstance(item, pytest.Function):
            item.fixturenames.insert(0, "cpu_compat")
        if ("gpu" in item.keywords) != (DEVICE == "cuda"):
            item.add_marker(others)
