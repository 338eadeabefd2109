"""The loss of a micro-batch and the numbers reported about it.

Shapes: per-token loss and loss_mask [b, s]; loss_mask holds float weights, 0 leaves a token out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """Loss as it is optimised, and the plain language-model loss without weights."""

    loss: float
    lm_loss: float


def weighted_loss(
    token_losses: Tensor, loss_mask: Tensor, sum_over_context: Callable[[Tensor], Tensor] = lambda sums: sums
) -> tuple[Tensor, Tensor]:
    """The loss to optimise and the sums to report.

    The loss is sum(loss * mask) over the number of tokens with mask > 0, so that answer weights raise a token's share
    without lowering the others'. The sums [3] are: weighted loss, plain loss of the tokens with mask > 0, their number;
    detached and owned, because Megatron's schedules divide the loss in place. `sum_over_context` adds the sums of the
    ranks that share a sequence; their losses (this rank's part over the common count) add up to the sequence's.
    """
    weighted, sums = _sums(token_losses, loss_mask)
    sums = sum_over_context(sums)
    return weighted / sums[2].clamp(min=1.0), sums


def summed_loss(
    token_losses: Tensor, loss_mask: Tensor, sum_over_context: Callable[[Tensor], Tensor] = lambda sums: sums
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for --calculate-per-token-loss: sum(loss * mask), this rank's number of tokens with mask > 0, the sums.

    Megatron divides the gradients of a whole step by the number of its tokens, over all micro-batches and replicas.
    """
    weighted, sums = _sums(token_losses, loss_mask)
    own_tokens = sums[2].to(torch.int)
    return weighted, own_tokens, sum_over_context(sums)


def _sums(token_losses: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum with its graph, and the [3] detached sums."""
    counted = (loss_mask > 0).to(torch.float32)
    token_losses = token_losses.float()
    weighted = (token_losses * loss_mask).sum()
    return weighted, torch.stack([weighted.detach(), (token_losses.detach() * counted).sum(), counted.sum()])


def mean_over_batches(sums: Tensor) -> Tensor:
    """[m, 3] sums of m micro-batches -> [2] loss and plain loss, every micro-batch weighing the same, as optimised."""
    return (sums[:, :2] / sums[:, 2:].clamp(min=1.0)).mean(dim=0)


def mean_over_tokens(sums: Tensor) -> Tensor:
    """[m, 3] sums of m micro-batches -> [2] loss and plain loss, every token weighing the same."""
    total = sums.sum(dim=0)
    return total[:2] / total[2].clamp(min=1.0)
