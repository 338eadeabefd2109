"""A causal convolution over the last few tokens of every channel, with silu, in any cut of a text."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def short_convolution(
    x: Tensor,
    weight: Tensor,
    history: Tensor | None = None,
    starts: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix every channel with its last values and apply silu; sums in float32 at least.

    Args:
        x: [B, T, channels].
        weight: [channels, taps], the last tap for the token itself.
        history: [B, taps - 1, channels], what stands before the first token; None at the beginning of a text.
        starts: [B, T] bool, True at the first token of a document, which sees none of those before it; or None.
        counts: [B], tokens of every row; what stands behind them is none. None: all are tokens.

    Returns:
        [B, T, channels] in the dtype of `x`, and the history for the tokens that follow, of the same dtype.
    """
    length, taps = x.shape[1], weight.shape[1]
    if history is None:
        history = x.new_zeros(x.shape[0], taps - 1, x.shape[2])
    stream = torch.cat([history.to(x.dtype), x], 1)
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide) * weight[:, -1].to(wide)
    for back in range(1, taps):
        earlier = stream[:, taps - 1 - back : taps - 1 - back + length].to(wide)
        if starts is not None:
            earlier = earlier.masked_fill(_crossed(starts, back).unsqueeze(-1), 0)
        total = torch.addcmul(total, earlier, weight[:, -1 - back].to(wide))
    return F.silu(total).to(x.dtype), _last(stream, taps - 1, counts)


def _crossed(starts: Tensor, back: int) -> Tensor:
    """[B, T] bool: whether a document begins between the token `back` places before and the token itself."""
    begun = starts.cumsum(1)
    return begun > F.pad(begun, (back, 0))[:, : begun.shape[1]]


def _last(stream: Tensor, width: int, counts: Tensor | None) -> Tensor:
    """The last `width` entries of every row of [B, width + T, channels], up to its `counts` tokens."""
    if counts is None:
        return stream[:, stream.shape[1] - width :]
    places = counts.unsqueeze(1) + torch.arange(width, device=stream.device)
    return stream.gather(1, places.unsqueeze(-1).expand(-1, -1, stream.shape[2]))
