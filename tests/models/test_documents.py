"""Documents packed into one sequence, kept apart, are what each of them is alone."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.models.builder import MegatronFwPKMModel, build_model, preserve_fast_weights
from tests.layers.megatron import VOCABULARY, batch, tiny
from tests.training.double_precision import double_precision

_EDGES = (0, 1, 14, 37, 48)
"""A document of one token, one shorter than a chunk and a window, one longer than both, one of some length."""


def _packed(rows: int) -> tuple[torch.Tensor, ...]:
    """Tokens, restarting positions, labels and document starts, each [b, s]."""
    tokens, positions, labels = batch(batch_size=rows)
    starts = torch.zeros(tokens.shape, dtype=torch.bool)
    starts[:, list(_EDGES[:-1])] = True
    return tokens, positions - torch.where(starts, positions, 0).cummax(dim=1).values, labels, starts


def _losses(model: MegatronFwPKMModel, *inputs: torch.Tensor | None) -> torch.Tensor:
    tokens, positions, labels, starts, documents = inputs
    with preserve_fast_weights(model):
        model.set_document_starts(starts)
        return model(tokens, positions, documents, labels=labels)


@double_precision()
@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize(
    ("rows", "memories", "pattern"), [(1, (2, 3), "swa:5,fa,swa:9"), (2, (), "swa:5,fa,swa:9"), (2, (), "gdn")]
)
def test_packed_documents_are_what_they_are_alone(
    restart: bool, rows: int, memories: tuple[int, ...], pattern: str
) -> None:
    """In float64. Rotary positions are relative, so within a document it is no matter where they begin."""
    data = {"reset_position_ids": restart, "reset_attention_mask": True}
    model_options = {"layer_pattern": pattern}
    model = build_model(tiny(reset="document", layer_numbers=memories, data=data, model=model_options), VOCABULARY)
    inputs = _packed(rows)
    packed = _losses(model, *inputs, inputs[-1])
    packed.sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    alone = [_losses(model, *(x[:, a:b] for x in inputs[:3]), None, None) for a, b in zip(_EDGES, _EDGES[1:])]  # noqa: B905
    torch.cat(alone, dim=1).sum().backward()
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-11, atol=1e-11)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-10, atol=1e-10, msg=name)
    seen = _losses(model, *inputs, None)
    torch.testing.assert_close(seen[:, :1], packed[:, :1], rtol=1e-11, atol=1e-11)
    same = torch.isclose(seen[:, 2:], packed[:, 2:], rtol=1e-10, atol=0).float().mean()
    assert same < 0.2, "without the mask documents see others"


def test_rotary_positions_are_those_of_position_ids() -> None:
    """Counted on they change nothing, bit for bit; restarting they turn what looks back over a start."""
    plain, restarting = (
        build_model(tiny(layer_numbers=(), data={"reset_position_ids": on}), VOCABULARY) for on in (False, True)
    )
    tokens, positions, labels = batch()
    expected = plain(tokens, positions, None, labels=labels)
    assert torch.equal(restarting(tokens, positions, None, labels=labels), expected)
    tokens, positions, labels, starts = _packed(2)
    turned = restarting(tokens, positions, None, labels=labels)
    assert torch.equal(turned[:, :1], expected[:, :1]) and not torch.isclose(turned[:, 3:], expected[:, 3:]).all()
