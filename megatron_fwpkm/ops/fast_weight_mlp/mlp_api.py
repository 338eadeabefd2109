"""The public functions of the fast-weight MLP; its maths is in this folder's README."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ..sharding import TableSharding
from .closed_form import run_closed_form
from .mlp_call import MLPCall
from .mlp_options import FastMLPOptions
from .mlp_state import FastMLPOutput, FastMLPState


def fast_weight_mlp(
    queries: Tensor,
    targets: Tensor,
    gates: Tensor | None,
    state: FastMLPState,
    options: FastMLPOptions | None = None,
    *,
    mask: Tensor | None = None,
    sharding: TableSharding | None = None,
    **keywords: Any,
) -> FastMLPOutput:
    """Read every token through a fast SwiGLU and train it on each chunk after it was read. Inputs are never modified.

    Exactly differentiable in queries, targets, gates and the initial weights, through all reads and writes of the
    call. Nothing flows to an earlier call: the returned state is detached. Backward needs none of the caller's state.

    B sequences of T tokens share the weights. Tensors have the dtype and device of the weights, float32 or float64.

    Args:
        queries: [B, T, key_dim].
        targets: [B, T, value_dim]; token t learns the mean of the targets of tokens t to t + lookahead.
        gates: [B, T] weights of the tokens in the mean loss of a write, or None for 1.
        state: the fast weights before the call, and tokens that wait.
        options: numbers and choices, or None to make them from the keywords alone.
        mask: [B, T] of any dtype, 0 where a token must not be written; or None. A masked token counts in the mean.
        sharding: collectives for weights that are spread over processes by hidden width; everything else is the
            same on all of them, gradients of reads and of inputs too. None when the weights are whole.
        keywords: fields of `FastMLPOptions`, which describes them; they go before those of `options`.

    Returns:
        Reads, losses of the writes and the new state.

    Raises:
        ValueError: an option is out of its range or does not go with another; shapes, dtypes or devices do not fit the
            weights or the pending tokens; or `drop` would lose pending tokens. The message says what to do.
    """
    call = MLPCall.of_tokens(queries, targets, gates, mask, state, _options(options, keywords))
    return call.run(partial(run_closed_form, sharding=sharding))


def flush_pending_mlp(
    state: FastMLPState,
    options: FastMLPOptions | None = None,
    *,
    sharding: TableSharding | None = None,
    **keywords: Any,
) -> FastMLPOutput:
    """Write the pending tokens whose targets are known, as one smaller chunk.

    For asking a question about a text right after its end. The last `lookahead` tokens keep waiting. Arguments that
    are not named here are those of `fast_weight_mlp`, and best the same as in the calls before.

    Args:
        state: with its pending tokens; without any, nothing happens.
        options: `chunk_size`, `boundary` and `write_scale` are without effect.

    Returns:
        An output with empty reads ([B, 0, value_dim]), the losses of the write and the new state.

    Raises:
        ValueError: an option is out of its range, or the weights do not fit each other.
    """
    call = MLPCall.of_pending(state, _options(options, {**keywords, "boundary": "carry"}))
    return call.run(partial(run_closed_form, sharding=sharding))


def _options(options: FastMLPOptions | None, keywords: dict[str, Any]) -> FastMLPOptions:
    if options is None:
        return FastMLPOptions(**keywords)
    return replace(options, **keywords) if keywords else options
