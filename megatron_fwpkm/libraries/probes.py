"""Looks at what is installed, without trusting it: a package may be absent, broken, foreign or of another version.

An import is tried in earnest and every Exception is caught: a half-installed Transformer Engine raises RuntimeError.
What is found is a `Finding`; what a run takes is decided in `choices`, and what should be mended in `training.doctor`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any, Literal

from ..config.megatron_releases import is_supported, supported_megatron, transformer_engine_range

Status = Literal["ok", "absent", "broken", "other version", "foreign"]

LEAST_TORCH = (2, 10)
SUPPORTED_PYTHONS = ((3, 11), (3, 12))
GRADIENT_KERNEL = "fused_weight_gradient_mlp_cuda"
"""The extension module of Apex that has no replacement: gradient accumulation fusion."""
FLASH_LINEAR_ATTENTION = "fla"
"""The module of flash-linear-attention, and of its kernels alone (the distribution fla-core)."""
_FP8_QUESTIONS = {
    "delayed": "is_fp8_available",
    "tensorwise": "is_fp8_available",
    "blockwise": "is_fp8_block_scaling_available",
    "mxfp8": "is_mxfp8_available",
}
"""By the recipe, what Transformer Engine is asked."""
_FUSED_MODULES = ("transformer_engine", "apex", GRADIENT_KERNEL, FLASH_LINEAR_ATTENTION)


@dataclass(frozen=True)
class Finding:
    """One package or facility of this machine."""

    name: str
    status: Status
    version: str = ""
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it can be used."""
        return self.status == "ok"


def is_there(module: str) -> bool:
    """Whether a package of this name can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it was put among the imported modules by hand
        return True


def hide(package: str) -> None:
    """Make every later import of a package raise ModuleNotFoundError, as if it were not installed."""
    parts = [name for name in sys.modules if name.startswith(f"{package}.")]
    sys.modules.update(dict.fromkeys([package, *parts]))  # type: ignore[arg-type]  # None means that


@dataclass(frozen=True)
class Environment:
    """How the machine is looked at; tests put fakes in."""

    import_module: Callable[[str], ModuleType] = importlib.import_module
    is_there: Callable[[str], bool] = is_there
    hide: Callable[[str], None] = hide
    version: Callable[[str], str] = importlib.metadata.version
    python: tuple[int, ...] = field(default_factory=lambda: tuple(sys.version_info[:3]))


def survey(environment: Environment) -> dict[str, Finding]:
    """All findings by name, in the order in which they are shown."""
    torch, torch_finding = _load(environment, "torch", "torch")
    fused = _fused(environment)  # before megatron-core, which may fail to import where one of them is broken
    probes: list[Finding] = [
        _python(environment),
        _at_least(torch_finding, LEAST_TORCH),
        _cuda(torch),
        *_backends(torch),
        _load(environment, "triton", "triton")[1],
        _megatron(environment),
        _index_helper(environment),
        *fused,
        _flash_linear_attention(environment, _any_gpu(torch).ok),
        _load(environment, "deepspeed", "deepspeed")[1],
        *(_load(environment, name, name)[1] for name in ("sentencepiece", "transformers", "safetensors")),
    ]
    return {found.name: found for found in probes}


def quick_survey(environment: Environment) -> dict[str, Finding]:
    """What of `survey` takes a second: torch is imported, but opens no GPU; packages are looked up by version."""
    torch, torch_finding = _load(environment, "torch", "torch")
    megatron = _by_version(environment, "megatron-core")
    if megatron.ok and not is_supported(megatron.version):
        note = f"this project is made for {supported_megatron()}"
        megatron = Finding("megatron-core", "other version", megatron.version, note)
    probes = [
        _python(environment),
        _at_least(torch_finding, LEAST_TORCH),
        _any_gpu(torch),
        *_backends(torch),
        megatron,
        *(_by_version(environment, name) for name in ("sentencepiece", "transformers", "safetensors")),
    ]
    return {found.name: found for found in probes}


@cache
def installed() -> dict[str, Finding]:
    """What the choices of a run depend on, on this machine; what is installed but unusable is hidden from now on.

    Without any of these libraries torch is not imported.
    """
    return fused_libraries(Environment())


def fused_libraries(environment: Environment) -> dict[str, Finding]:
    """Findings by name of CUDA and of the libraries with fused kernels for it."""
    if not any(map(environment.is_there, _FUSED_MODULES)):
        unknown = Finding("CUDA", "absent", note="not looked for: there is no library that would use it")
        return {one.name: one for one in (unknown, *(Finding(name, "absent") for name in _FUSED_MODULES))}
    torch, _ = _load(environment, "torch", "torch")  # first: the extension modules are linked with it
    cuda = _any_gpu(torch)
    found = {one.name: one for one in (cuda, *_fused(environment), _flash_linear_attention(environment, cuda.ok))}
    if found["CUDA"].ok and found["transformer_engine"].ok:
        found |= {one.name: one for one in _fp8_recipes(environment)}
    return found


def _fused(environment: Environment) -> list[Finding]:
    """Transformer Engine and Apex, and Apex's kernel of gradients.

    megatron-core falls back where their import raises ImportError, fails where it raises anything else, and takes any
    package named apex for NVIDIA's. What cannot be used is therefore hidden from it.
    """
    found = [_transformer_engine(environment), _apex(environment), _gradient_kernel(environment)]
    for one in found:
        if one.status in ("broken", "foreign"):
            environment.hide(one.name)
    return found


def _fp8_recipes(environment: Environment) -> list[Finding]:
    """Whether Transformer Engine computes each recipe of --fp8-recipe on this GPU, as it says itself."""
    found = []
    for recipe, question in _FP8_QUESTIONS.items():
        try:
            manager = environment.import_module("transformer_engine.pytorch.fp8").FP8GlobalStateManager
            works, why = getattr(manager, question)()
        except Exception as error:
            works, why = False, _first_line(error)
        found.append(Finding(f"FP8 {recipe}", "ok" if works else "absent", note=why.rstrip(".")))
    return found


def import_quietly(environment: Environment, module: str) -> tuple[ModuleType | None, Exception | None]:
    """(module, None), or (None, what the import raised); whatever it prints or warns is swallowed."""
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            return environment.import_module(module), None
    except Exception as error:  # anything at all: see the module's docstring
        return None, error


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.13.0+cpu` is (2, 13, 0)."""
    found = []
    for part in version.split("+")[0].split("."):
        digits = "".join(letter for letter in part if letter.isdigit())
        if not part[:1].isdigit():
            break
        found.append(int(digits))
    return tuple(found)


def _load(environment: Environment, module: str, distribution: str) -> tuple[ModuleType | None, Finding]:
    """Import a package; absent only when it is that very package that cannot be found."""
    loaded, error = import_quietly(environment, module)
    if loaded is not None:
        return loaded, Finding(module, "ok", _version_of(environment, loaded, distribution))
    if isinstance(error, ModuleNotFoundError) and error.name in (None, module, module.split(".")[0]):
        return None, Finding(module, "absent")
    return None, Finding(module, "broken", _installed_version(environment, distribution), _first_line(error))


def _version_of(environment: Environment, module: ModuleType, distribution: str) -> str:
    return str(getattr(module, "__version__", None) or _installed_version(environment, distribution))


def _installed_version(environment: Environment, distribution: str) -> str:
    try:
        return environment.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _first_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:120]


def _by_version(environment: Environment, distribution: str) -> Finding:
    version = _installed_version(environment, distribution)
    return Finding(distribution, "ok" if version else "absent", version)


def _python(environment: Environment) -> Finding:
    version = environment.python
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    status: Status = "ok" if version[:2] in SUPPORTED_PYTHONS else "other version"
    return Finding("python", status, ".".join(map(str, version)), f"{platform.machine()}, {cores} CPU cores")


def _at_least(found: Finding, least: tuple[int, int]) -> Finding:
    if found.ok and numbers(found.version)[:2] < least:
        return Finding(found.name, "other version", found.version, f"needs {'.'.join(map(str, least))} or newer")
    return found


def _any_gpu(torch: Any) -> Finding:
    """Whether torch finds a GPU; unlike `_cuda` it opens none, of which a rank may use one only."""
    built = getattr(getattr(torch, "version", None), "cuda", None) or ""
    try:
        is_available = torch is not None and torch.cuda.is_available()
    except Exception as error:
        return Finding("CUDA", "broken", built, _first_line(error))
    if is_available:
        return Finding("CUDA", "ok", built)
    return Finding("CUDA", "absent", built, "no usable GPU" if built else "torch is a CPU build")


def _cuda(torch: Any) -> Finding:
    """The GPUs that torch can use."""
    if torch is None:
        return Finding("CUDA", "absent", note="unknown without torch")
    built = getattr(torch.version, "cuda", None)
    try:
        if not torch.cuda.is_available():
            return Finding("CUDA", "absent", built or "", "no usable GPU" if built else "torch is a CPU build")
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    except Exception as error:
        return Finding("CUDA", "broken", built or "", _first_line(error))
    kinds = {f"{one.name} {one.total_memory / 2**30:.0f} GiB sm_{one.major}{one.minor}" for one in names}
    return Finding("CUDA", "ok", built or "", f"{len(names)} x {' / '.join(sorted(kinds))}")


def _backends(torch: Any) -> list[Finding]:
    """NCCL and gloo as built into torch."""
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available():
        return [Finding("nccl", "absent"), Finding("gloo", "absent")]
    nccl = Finding("nccl", "absent")
    if distributed.is_nccl_available():
        try:
            nccl = Finding("nccl", "ok", ".".join(map(str, torch.cuda.nccl.version())))
        except Exception as error:
            nccl = Finding("nccl", "broken", note=_first_line(error))
    return [nccl, Finding("gloo", "ok" if distributed.is_gloo_available() else "absent")]


def _megatron(environment: Environment) -> Finding:
    """megatron-core, of a supported release, with its GPT model importable."""
    _, found = _load(environment, "megatron.core", "megatron-core")
    found = Finding("megatron-core", found.status, found.version, found.note)
    if not found.ok:
        return found
    if not is_supported(found.version):
        note = f"this project is made for {supported_megatron()}"
        return Finding("megatron-core", "other version", found.version, note)
    _, error = import_quietly(environment, "megatron.core.models.gpt")
    if error is not None:
        return Finding("megatron-core", "broken", found.version, _first_line(error))
    return found


def _index_helper(environment: Environment) -> Finding:
    """The compiled part of megatron's datasets."""
    _, error = import_quietly(environment, "megatron.core.datasets.helpers_cpp")
    if error is None:
        return Finding("dataset helper", "ok")
    status: Status = "absent" if isinstance(error, ModuleNotFoundError) else "broken"
    return Finding("dataset helper", status, note=_first_line(error))


def _transformer_engine(environment: Environment) -> Finding:
    loaded, found = _load(environment, "transformer_engine", "transformer_engine")
    if loaded is not None:
        _, error = import_quietly(environment, "transformer_engine.pytorch")
        if error is not None:
            return Finding("transformer_engine", "broken", found.version, _first_line(error))
        low, high = transformer_engine_range(_installed_version(environment, "megatron-core"))
        if not low <= numbers(found.version)[:2] < high:
            span = f"{'.'.join(map(str, low))} to below {'.'.join(map(str, high))}"
            return Finding("transformer_engine", "other version", found.version, f"megatron-core goes with {span}")
    return found


def _apex(environment: Environment) -> Finding:
    """NVIDIA's Apex has optimizers, and kernels for them; the package of that name on PyPI is another thing."""
    loaded, found = _load(environment, "apex", "apex")
    if loaded is None:
        return found
    _, error = import_quietly(environment, "apex.optimizers")
    if error is not None:
        return Finding("apex", "foreign", found.version, "not NVIDIA's Apex: it has no working apex.optimizers")
    _, error = import_quietly(environment, "amp_C")
    if error is not None:
        return Finding("apex", "broken", found.version, "built without its CUDA kernels (amp_C)")
    return found


def _flash_linear_attention(environment: Environment, cuda: bool) -> Finding:
    """The kernels of the gated delta rule; only a machine with a GPU imports them, which takes seconds."""
    module = FLASH_LINEAR_ATTENTION
    if not environment.is_there(module):
        return Finding(module, "absent")
    if not cuda:
        return Finding(module, "ok", _installed_version(environment, "fla-core"), "not imported: there is no GPU")
    loaded, found = _load(environment, f"{module}.ops.gated_delta_rule", "fla-core")
    broken = found.status if loaded is None or hasattr(loaded, "chunk_gated_delta_rule") else "broken"
    return Finding(module, broken, _installed_version(environment, "fla-core"), found.note)


def _gradient_kernel(environment: Environment) -> Finding:
    """The extension module that adds a weight gradient to the buffer within its matrix product."""
    return _load(environment, GRADIENT_KERNEL, "apex")[1]
