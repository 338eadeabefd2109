"""The loss against its definition, and what is reported about it."""

from __future__ import annotations

import torch

from megatron_fwpkm.engines.losses import mean_over_batches, mean_over_tokens, weighted_loss


def test_answer_weights_raise_a_tokens_share_without_lowering_the_others() -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 0.0, 5.0, 1.0]])
    loss, sums = weighted_loss(losses, mask)
    torch.testing.assert_close(loss.detach(), torch.tensor((1.0 + 15.0 + 4.0) / 3), rtol=1e-6, atol=0.0)
    assert sums.tolist() == [20.0, 8.0, 3.0]
    loss.backward()
    assert torch.allclose(losses.grad, mask / 3)  # type: ignore[arg-type]


def test_sums_are_owned_although_the_schedule_divides_the_loss_in_place() -> None:
    loss, sums = weighted_loss(torch.ones(1, 4, requires_grad=True), torch.ones(1, 4))
    loss /= 8
    assert sums.tolist() == [4.0, 4.0, 4.0] and not sums.requires_grad


def test_a_batch_without_counted_tokens_is_zero_and_finite() -> None:
    loss, sums = weighted_loss(torch.ones(1, 4), torch.zeros(1, 4))
    assert loss.item() == 0.0
    assert mean_over_tokens(sums[None]).tolist() == mean_over_batches(sums[None]).tolist() == [0.0, 0.0]


def test_means() -> None:
    sums = torch.tensor([[10.0, 8.0, 4.0], [3.0, 3.0, 1.0]])
    assert mean_over_batches(sums).tolist() == [(10 / 4 + 3) / 2, (8 / 4 + 3) / 2]
    assert torch.allclose(mean_over_tokens(sums), torch.tensor([13 / 5, 11 / 5]))
