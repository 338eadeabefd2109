"""Lets megatron-core run on CPU tensors with gloo, for tests and small models on machines without CUDA.

megatron-core writes `device="cuda"`, `torch.cuda.current_device()` and the like into its source. `install`
gives exactly those places an answer for the CPU. Nothing here is active on a machine with CUDA, nothing runs inside
the forward pass of a layer (no TorchFunctionMode, so no overhead per operation, and autograd's backward needs no care).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from .megatron_versions import define_missing_names, warn_of_other_release

MODULES_WITH_CUDA_LITERALS = (
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.mapping",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron.core.distributed.param_and_grad_buffer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.optimizer.optimizer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.rerun_state_machine",
    "megatron.core.tensor_parallel.data",
    "megatron.core.transformer.utils",
    "megatron.core.utils",
)
"""Modules that create tensors with `device="cuda"` (`mapping` with a device handed to it) on a path we use."""

MODULES_WITH_PINNED_MEMORY = ("megatron.core.models.common.embeddings.rope_utils",)
"""Modules that pin what they make for the GPU, here the pieces of a context-parallel rank."""

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "empty_like", "zeros_like", "ones_like")
_CPU = torch.device("cpu")


class CpuTorch(ModuleType):
    """Stands for the module `torch` inside one megatron module: tensor factories put "cuda" tensors on the CPU."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def create(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        """Call the factory with the CPU in place of a CUDA device."""
        if device is not None and torch.device(device).type == "cuda":
            device = _CPU
        kwargs.pop("pin_memory", None)  # is for copies to a GPU, and an error without one
        return factory(*args, device=device, **kwargs)

    return create


def install() -> bool:
    """Patch megatron-core for the CPU. Safe to call any number of times; does nothing where CUDA is available.

    Returns:
        True when the patches are in place, False on a machine with CUDA.

    Warns:
        UserWarning: the installed megatron-core is none of the releases these patches were written for.
    """
    if torch.cuda.is_available():
        return False
    from megatron.core.tensor_parallel import random as megatron_random

    if getattr(megatron_random, "_fwpkm_cpu_compat", False):
        return True
    warn_of_other_release("the CPU compatibility layer")
    _patch_cuda_queries()
    _patch_tensor_methods()
    _patch_random(megatron_random)
    _patch_literals()
    define_missing_names()
    megatron_random._fwpkm_cpu_compat = True
    return True


def _patch_cuda_queries() -> None:
    """Answer what megatron asks of the device: where new tensors go, its stream, its cache, its RNG, waiting for it."""
    patches: dict[str, Callable[..., Any]] = {
        "current_device": lambda: _CPU,
        "current_stream": lambda *args: None,
        "synchronize": lambda *args, **kwargs: None,
        "empty_cache": lambda: None,
        "manual_seed": lambda seed: torch.manual_seed(seed),
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
    }
    for name, function in patches.items():
        setattr(torch.cuda, name, function)


def _patch_tensor_methods() -> None:
    """`x.cuda()` stays where it is; `x.type()` names the CUDA type that the optimizers compare it with."""
    original_type = torch.Tensor.type

    def cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The tensor itself, on the CPU."""
        return self

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The name of the type as it would be on CUDA."""
        result = original_type(self, *args, **kwargs)
        if args or kwargs or result.startswith("torch.cuda."):
            return result
        return result.replace("torch.", "torch.cuda.", 1)

    setattr(torch.Tensor, "cuda", cuda)  # noqa: B010  (mypy refuses a plain assignment to a method)
    setattr(torch.Tensor, "type", type_name)  # noqa: B010


def _patch_random(megatron_random: Any) -> None:
    """Keep the tracked random states on the CPU generator, so that dropout and recompute use them."""

    class CpuRNGStatesTracker(megatron_random.CudaRNGStatesTracker):
        """A tracker whose forks switch the one CPU generator; the original warns that this generator has moved."""

        _current_state_name: str

        @contextlib.contextmanager
        def fork(self, name: str = megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
            """Run the body with the random state `name`, which continues where it stopped last time."""
            if name not in self.states_:
                raise ValueError(
                    f"random state {name} is unknown: call model_parallel_cuda_manual_seed before using dropout"
                )
            outer_name, outer_state = self._current_state_name, torch.get_rng_state()
            if outer_name in self.states_:  # a fork within a fork
                self.states_[outer_name] = outer_state
            torch.set_rng_state(self.states_[name])
            self._current_state_name = name
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                # Within a fork of the same name, go on where the inner one stopped.
                torch.set_rng_state(self.states_.get(outer_name, outer_state))
                self._current_state_name = outer_name

    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    megatron_random.CudaRNGStatesTracker = CpuRNGStatesTracker
    # A tracker made before this call was of the old class.
    megatron_random._CUDA_RNG_STATE_TRACKER = None
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False


def _patch_literals() -> None:
    """Let `torch.zeros(..., device="cuda")` in megatron's own modules mean the CPU."""
    cpu_torch = CpuTorch()
    for name in MODULES_WITH_CUDA_LITERALS + MODULES_WITH_PINNED_MEMORY:
        module = importlib.import_module(name)
        setattr(module, "torch", cpu_torch)  # noqa: B010
