"""The gated delta rule for a chunk of tokens at a time: short, differentiable torch, which ships with exports.

Symbols and derivation are in the README. No exponential here has a positive argument and no difference of sums of
log-decays is taken, so float32 is enough for any decay, and minus infinity is one: the state is forgotten.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_SIZE = 64
"""Tokens of a chunk: products within it grow with its square, steps from one to the next with their number."""


def gated_delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decays: Tensor,
    strengths: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, Tensor]:
    """Read and write a matrix of key-value associations, token after token: `reference.delta_rule_by_token`, faster.

    Args:
        queries: [B, T, key heads, key width].
        keys: like `queries`; of length 1 at most, or the state may grow without bound.
        values: [B, T, value heads, value width]; each key head serves as many value heads that follow each other.
        log_decays: [B, T, value heads], at most 0.
        strengths: [B, T, value heads], from 0 to 1.
        state: [B, value heads, key width, value width] before the first token; None for zeros.
        starts: [B, T] bool, True at tokens before which the state becomes zero; None for no such token.
        chunk_size: tokens of a chunk.

    Returns:
        outputs [B, T, value heads, value width] and the state after the last token, in float32 at least.
    """
    batch, length, heads, value_width = values.shape
    dtype = torch.promote_types(values.dtype, torch.float32)
    key_width, repeats = keys.shape[-1], heads // keys.shape[2]
    if state is None:
        state = values.new_zeros(batch, heads, key_width, value_width, dtype=dtype)
    state = state.to(dtype)
    if not length:
        return values.to(dtype), state
    if starts is not None:
        log_decays = log_decays.masked_fill(starts.unsqueeze(-1), -torch.inf)
    chunk = min(chunk_size, length)
    q, k = (_chunks(x.to(dtype).repeat_interleave(repeats, 2), chunk) for x in (queries, keys))
    v, b, g = (_chunks(x.to(dtype), chunk) for x in (values, strengths.unsqueeze(-1), log_decays.unsqueeze(-1)))
    between = _decays_between(g.squeeze(-1))  # D, [B, H, N, C, C]
    since = g.cumsum(-2).exp()  # d, [B, H, N, C, 1]: from the state before the chunk
    until = between[..., -1, :].unsqueeze(-1)  # to the state after it

    written = k * b
    system = (written @ k.mT) * between
    solved = torch.linalg.solve_triangular(
        system, torch.cat([v * b, written * since], -1), upper=False, unitriangular=True
    )
    own, of_state = solved.split([value_width, key_width], -1)
    kept = (k * until).mT
    states, errors = [], []
    for n in range(g.shape[2]):
        states.append(state)
        errors.append(own[:, :, n] - of_state[:, :, n] @ state)
        state = state * since[:, :, n, -1:] + kept[:, :, n] @ errors[-1]
    q = q * key_width**-0.5
    outputs = (q * since) @ torch.stack(states, 2) + ((q @ k.mT) * between) @ torch.stack(errors, 2)
    return outputs.flatten(2, 3)[:, :, :length].transpose(1, 2), state


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """[B, T, H, d] to [B, H, N, C, d]; what fills the last chunk up is zero: it neither decays nor writes."""
    padding = -x.shape[1] % chunk
    return F.pad(x, (0, 0, 0, 0, 0, padding)).transpose(1, 2).unflatten(2, (-1, chunk))


def _decays_between(log_decays: Tensor) -> Tensor:
    """[..., C] to [..., C, C]: at (i, j) the decay of what token j wrote until token i has read; 0 where j > i.

    Every entry has a sum of its own. A difference of two running sums would lose the digits of a small decay behind a
    large one, and would be no number behind an infinite one.
    """
    chunk = log_decays.shape[-1]
    ones = torch.ones(chunk, chunk, dtype=torch.bool, device=log_decays.device)
    steps = log_decays.unsqueeze(-1).expand(*log_decays.shape, chunk).masked_fill(ones.triu(), 0)
    return steps.cumsum(-2).exp().tril()
