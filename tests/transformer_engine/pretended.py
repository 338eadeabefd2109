"""Makes Transformer Engine importable in a process without CUDA: its own Python sources, a pretended extension module.

`make setup` puts the sources beside the packages of the environment, where nothing imports them by accident. Only
processes that a test starts for itself may `install` this: megatron.core looks once whether there is a Transformer
Engine, when it is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.transformer_engine.kernels import extension

VERSION = "2.11.0"
SOURCES = Path(sys.prefix) / "share" / "transformer-engine"


needs_sources = pytest.mark.skipif(
    not (SOURCES / "transformer_engine" / "pytorch").is_dir(),
    reason=f"no sources of Transformer Engine in {SOURCES.relative_to(sys.prefix)} of the environment (make setup)",
)


class _Module(types.ModuleType):
    """A module in which some names are others, and the rest is that of another module."""

    def __init__(self, name: str, others: Any, **own: Any) -> None:
        super().__init__(name)
        self.__dict__.update(own)
        self.__dict__["_others"] = others

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_others"], name)


class _Anything:
    """Answers every name with a function that does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def install() -> None:
    """Put Transformer Engine among the modules of this process, before anything imports megatron.core."""
    assert "megatron.core" not in sys.modules, "megatron.core has been imported without Transformer Engine"
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # its common part then loads no libraries
    os.environ["NVTE_UNFUSED_FP8_UPDATE"] = "1"  # scales are updated by its Python, not by a kernel
    os.environ["NVTE_MASKED_SOFTMAX_FUSION"] = "0"  # its attention without kernels then is torch alone
    sys.path.insert(0, str(SOURCES))
    sys.modules["transformer_engine_torch"] = extension()
    for name in ("transformer_engine.pytorch.onnx_extensions", "einops"):  # for what is not used here
        sys.modules[name] = _Module(name, _Anything())
    package = types.ModuleType("transformer_engine")
    package.__path__ = [str(SOURCES / "transformer_engine")]
    package.__spec__ = importlib.machinery.ModuleSpec("transformer_engine", None, is_package=True)
    setattr(package, "__version__", VERSION)  # noqa: B010
    sys.modules["transformer_engine"] = package
    common = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda framework: None
    importlib.import_module("transformer_engine.pytorch")
    kernels: Any = importlib.import_module("transformer_engine.pytorch.cpp_extensions")
    kernels.__getattr__ = lambda name: getattr(sys.modules["transformer_engine_torch"], name)  # made when asked for
    sys.modules["transformer_engine.pytorch.optimizers"] = None  # type: ignore[assignment]  # torch's Adam is used
    _pretend_a_device()
    _pretend_findings()


def _pretend_a_device() -> None:
    """Inside Transformer Engine's modules there is a Hopper GPU, whose memory is the host's."""
    import torch

    cuda = _Module(
        "torch.cuda",
        torch.cuda,
        is_available=lambda: True,
        current_device=lambda: torch.device("cpu"),
        synchronize=lambda *args: None,
        is_current_stream_capturing=lambda: False,
        get_device_capability=lambda *args: (9, 0),
        get_device_properties=lambda *args: types.SimpleNamespace(major=9, minor=0, multi_processor_count=132),
        nvtx=_Module("torch.cuda.nvtx", _Anything(), range=lambda *args: contextlib.nullcontext()),
    )
    ours = _Module("torch", torch, cuda=cuda, **{name: _on_host(getattr(torch, name)) for name in _FACTORIES})
    for name, module in list(sys.modules.items()):
        if not name.startswith("transformer_engine.") or module is None:
            continue
        if getattr(module, "torch", None) is torch:
            setattr(module, "torch", ours)  # noqa: B010
        if hasattr(module, "get_cublas_workspace"):
            setattr(module, "get_cublas_workspace", lambda *args: torch.empty(1, dtype=torch.uint8))  # noqa: B010
    distributed: Any = importlib.import_module("transformer_engine.pytorch.distributed")
    distributed._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    distributed._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    _take_for_cuda_tensors()


def _take_for_cuda_tensors() -> None:
    """Let two methods that assert CUDA tensors see some."""
    import torch

    @contextlib.contextmanager
    def seen() -> Iterator[None]:
        outermost = "is_cuda" not in vars(torch.Tensor)
        setattr(torch.Tensor, "is_cuda", True)  # noqa: B010
        try:
            yield
        finally:
            if outermost:
                del torch.Tensor.is_cuda

    base: Any = importlib.import_module("transformer_engine.pytorch.module.base").TransformerEngineBaseModule
    attention: Any = importlib.import_module("transformer_engine.pytorch.attention").DotProductAttention
    prepare, forward = base.prepare_forward, attention.forward

    @contextlib.contextmanager
    def prepare_on_host(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            with seen():
                entered = stack.enter_context(prepare(self, *args, **kwargs))
            yield entered

    def attend_on_host(self: Any, *args: Any, **kwargs: Any) -> Any:
        with seen():
            return forward(self, *args, **kwargs)

    base.prepare_forward, attention.forward = prepare_on_host, attend_on_host


_FACTORIES = ("arange", "empty", "zeros", "ones", "tensor", "full", "empty_like", "zeros_like", "ones_like")


def _on_host(factory: Any) -> Any:
    def make(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        return factory(*args, device="cpu" if device is not None and str(device) != "meta" else None, **kwargs)

    return make


def _pretend_findings() -> None:
    """What the project finds on this machine."""
    from megatron_fwpkm.libraries import probes

    found = {
        "CUDA": probes.Finding("CUDA", "ok"),
        "transformer_engine": probes.Finding("transformer_engine", "ok", VERSION),
        "apex": probes.Finding("apex", "absent"),
        probes.GRADIENT_KERNEL: probes.Finding(probes.GRADIENT_KERNEL, "absent"),
    }
    probes.installed = lambda: found  # type: ignore[assignment]
