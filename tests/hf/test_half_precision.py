"""float16 around the memory: its tables and arithmetic stay float32, and no gradient overflows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_fwpkm.hf import FwPKMForCausalLM
from tests.hf.builders import small_model, token_ids

IDS = token_ids(1, 30, seed=4)


def gradients(model: FwPKMForCausalLM, scale: float = 1.0) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of a text, which were scaled as a gradient scaler does."""
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    (loss * scale).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.item(), {name: gradient.float() / scale for name, gradient in found.items()}


def calmer(model: FwPKMForCausalLM) -> FwPKMForCausalLM:
    """With weights as they are at the start of a training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2)
    return model


@pytest.mark.parametrize("implementation", ["auto", "sparse"])
@pytest.mark.parametrize("form", ["autocast", "half"])
def test_float16_is_near_float32(form: str, implementation: str) -> None:
    expected_loss, expected = gradients(calmer(small_model(5, torch.float32, fwpkm_implementation=implementation)))
    model = calmer(small_model(5, torch.float32, fwpkm_implementation=implementation))
    if form == "half":
        model = model.half()
        assert {buffer.dtype for name, buffer in model.named_buffers() if "values" in name} == {torch.float32}
    with torch.autocast("cpu", torch.float16, enabled=form == "autocast"):
        loss, found = gradients(model, 2.0**10)
    assert abs(loss - expected_loss) < 2e-3 * expected_loss
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
    # Two near scores may be chosen otherwise for rounded queries: all gradients together are compared.
    one, other = (torch.cat([gradient[name].flatten() for name in expected]) for gradient in (found, expected))
    assert (one - other).norm() < 0.03 * other.norm()


def test_a_gradient_scaler_steps_under_autocast() -> None:
    model = calmer(small_model(5, torch.float32)).train()
    optimizer, scaler = torch.optim.AdamW(model.parameters(), 3e-3), torch.amp.GradScaler("cpu", init_scale=2.0**14)
    losses = []
    for _ in range(6):
        with torch.autocast("cpu", torch.float16):
            loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() == 2.0**14, "no step was skipped for an overflow"
    assert losses[-1] < losses[0]
