"""Where the fast weights of a fast-weight MLP live: guarded buffers that are replaced as a whole (DESIGN 2.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from ..ops import FastMLPState, FastMLPWeights, PendingTokens
from ..ops.initialization import initial_mlp_weights

_NAMES = FastMLPWeights._fields
_HIDDEN_AXIS = {"down_weight": 1, "down_bias": None}
"""Which dimension of a weight is the hidden width, where that is not the first."""


class FastMLPTables(MegatronModule):
    """A module that owns the weights of one fast MLP, as buffers outside state dict, optimizer and DDP.

    `.half()`, `.bfloat16()`, `.to(dtype)` and Float16Module move them between devices but never cast them. Nothing is
    written into them: a write, a load or a reset puts other tensors in their place, so that a backward pass, a reset
    and `preserve_fast_weights` need references only.

    Args:
        config: the transformer configuration, with `fwmlp` and `init_seed`.
        layer_number: counted from 1 over the whole model; the initial weights depend on it.
        hidden: which part of the hidden width this rank holds.
    """

    def __init__(self, config, layer_number: int, hidden: slice) -> None:  # type: ignore[no-untyped-def]
        super().__init__(config)
        self.layer_number, self.hidden = layer_number, hidden
        self.pending: PendingTokens | None = None
        self._initial: FastMLPWeights | None = None
        self._preserved = 0
        for name, weight in initial_mlp_weights(config.fwmlp, config.init_seed, layer_number, hidden)._asdict().items():
            self.register_buffer(name, weight, persistent=False)
        self._keep_initial(self.weights())

    def weights(self) -> FastMLPWeights:
        """The fast weights as they are."""
        return FastMLPWeights(*(self._buffers[name] for name in _NAMES))

    def fast_weights(self) -> FastMLPState:
        """The fast weights (which later writes leave alone) and the tokens that wait."""
        return FastMLPState(self.weights(), self.pending)

    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights of all ranks that share them, by name, and that of one token's target as `target`."""
        sizes = self.config.fwmlp
        shapes: dict[str, tuple[int, ...]] = {"target": (sizes.value_dim,)}
        for name, weight in self.weights()._asdict().items():
            shape, axis = list(weight.shape), _HIDDEN_AXIS.get(name, 0)
            if axis is not None:
                shape[axis] = sizes.hidden_size
            shapes[name] = tuple(shape)
        return shapes

    @property
    def target_width(self) -> int:
        """Width of a waiting token's target, which every rank has whole."""
        return int(self.config.fwmlp.value_dim)

    def load_fast_weights(self, state: FastMLPState) -> None:
        """Take over copies of the weights of `state`, for example from a checkpoint. `reset` means the initial ones.

        Args:
            state: this rank's part.

        Raises:
            ValueError: a weight has another shape than here.
        """
        for name, old in self.weights()._asdict().items():
            new = state.tables()[name]
            if old.shape != new.shape:
                raise ValueError(
                    f"the fast weights of layer {self.layer_number} do not fit: {name} has shape {list(new.shape)}, "
                    f"but this memory has {list(old.shape)}; use the saved --fwmlp- sizes and layout"
                )
        loaded = (new.detach().to(old, copy=True) for new, old in zip(state.weights, self.weights(), strict=True))
        self._replace(FastMLPWeights(*loaded))
        self.pending = state.pending

    def reset(self) -> None:
        """Put the initial weights back, bit for bit, and forget waiting tokens."""
        self.pending = None
        if self._initial is not None:
            self._replace(self._initial)
            return
        drawn = initial_mlp_weights(self.config.fwmlp, self.config.init_seed, self.layer_number, self.hidden)
        old = self.weights()
        self._replace(FastMLPWeights(*(new.to(weight) for new, weight in zip(drawn, old, strict=True))))

    @contextmanager
    def preserve_fast_weights(self, keep: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Undo bit for bit at exit whatever is written, reset or loaded inside, unless `keep` then says that it stays.

        May be nested.
        """
        weights, pending = self.weights(), self.pending
        self._preserved += 1
        try:
            yield
        finally:
            self._preserved -= 1
            if not keep():
                self._replace(weights)
                self.pending = pending

    def wrote_only_finite(self) -> bool:
        """Whether the fast weights are finite; waits for a GPU."""
        return bool(torch.stack([torch.isfinite(weight).all() for weight in self.weights()]).all())

    def _replace(self, weights: FastMLPWeights) -> None:
        for name, weight in weights._asdict().items():
            self._buffers[name] = weight

    def _keep_initial(self, weights: FastMLPWeights) -> None:
        """Remember the initial weights where they are put back often; otherwise a reset draws them again."""
        self._initial = None if self.config.fwmlp.reset == "never" else weights

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FastMLPTables:
        """Apply a conversion of `nn.Module` to everything but the fast weights, of which only the device follows."""
        weights = FastMLPWeights(*(self._buffers.pop(name) for name in _NAMES))
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(weights._asdict())
        device = fn(torch.empty(0, device=weights.down_bias.device)).device
        if device != weights.down_bias.device:
            assert not self._preserved, "a model must not move while its fast weights are preserved"
            self._replace(FastMLPWeights(*(weight.to(device) for weight in weights)))
            if self._initial is not None:
                self._initial = FastMLPWeights(*(weight.to(device) for weight in self._initial))
        return self
