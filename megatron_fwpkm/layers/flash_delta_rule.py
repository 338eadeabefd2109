"""The gated delta rule by flash-linear-attention's kernels, in the place of `ops.gated_delta_net.chunked`."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from ..libraries.probes import FLASH_LINEAR_ATTENTION


def flash_delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decays: Tensor,
    strengths: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Read and write a matrix of key-value associations, token after token.

    Args:
        queries: [B, T, key heads, key width].
        keys: like `queries`.
        values: [B, T, value heads, value width].
        log_decays: [B, T, value heads], at most 0.
        strengths: [B, T, value heads], from 0 to 1.
        state: [B, value heads, key width, value width] before the first token; None for zeros.
        starts: [B, T] bool, True at tokens before which the state becomes zero; None for no such token.

    Returns:
        outputs [B, T, value heads, value width] and the state after the last token.
    """
    chunk_gated_delta_rule = import_module(f"{FLASH_LINEAR_ATTENTION}.ops.gated_delta_rule").chunk_gated_delta_rule
    if starts is None:
        return chunk_gated_delta_rule(
            queries, keys, values, log_decays, strengths, initial_state=state, output_final_state=True
        )
    # The kernels take texts of different lengths in one row.
    batch, length = starts.shape
    begins = starts.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero().flatten()
    edges = torch.cat([first, first.new_tensor([batch * length])])
    before = None
    if state is not None:  # it goes on at the beginning of rows where no document begins
        before = state.new_zeros(len(first), *state.shape[1:])
        goes_on = ~starts[:, 0]
        before[(first % length == 0).nonzero().flatten()[goes_on]] = state[goes_on]
    outputs, after = chunk_gated_delta_rule(
        *(x.flatten(0, 1).unsqueeze(0) for x in (queries, keys, values, log_decays, strengths)),
        initial_state=before, output_final_state=True, cu_seqlens=edges,
    )  # fmt: skip
    last = begins.sum(1).cumsum(0) - 1
    return outputs.squeeze(0).unflatten(0, (batch, length)), after[last]
