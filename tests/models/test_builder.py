"""The built model: what stands where, what it returns, how it starts, and that it cannot see the future."""

from __future__ import annotations

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.module import Float16Module

from megatron_fwpkm.layers.norm import MegatronRMSNorm
from megatron_fwpkm.models.builder import MegatronFwPKMModel, build_model, memory_layers, preserve_fast_weights
from tests.layers.megatron import VOCABULARY, batch, tiny


def _model(**options) -> MegatronFwPKMModel:
    return build_model(tiny(**options), VOCABULARY)


def _logits(model: MegatronFwPKMModel, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), preserve_fast_weights(model):
        return model(tokens, positions, None)


def test_every_layer_gets_what_its_number_says() -> None:
    model = _model()
    assert [memory.layer_number for memory in memory_layers(model)] == [2, 3]
    assert [layer.self_attention.core_attention.window for layer in model.decoder.layers] == [5, None, 9]
    norms = {name: module for name, module in model.named_modules() if "Norm" in type(module).__name__}
    assert all(isinstance(module, MegatronRMSNorm) for module in norms.values())
    assert {"decoder.final_layernorm", "decoder.layers.0.self_attention.q_layernorm"} <= norms.keys()


def test_loss_and_logits() -> None:
    model = _model()
    tokens, positions, labels = batch()
    logits = _logits(model, tokens, positions)
    assert logits.shape == (2, 48, VOCABULARY)
    with preserve_fast_weights(model):
        loss = model(tokens, positions, None, labels=labels)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(loss.detach().flatten(), expected, rtol=1e-5, atol=1e-5)


def test_memory_is_used_and_preserved() -> None:
    model = _model()
    tokens, positions, _ = batch()
    before = [(m.values.clone(), m.sub_keys.clone()) for m in memory_layers(model)]
    first = _logits(model, tokens, positions)
    assert torch.equal(_logits(model, tokens, positions), first)
    model(tokens, positions, None)
    assert not torch.equal(_logits(model, tokens, positions), first), "what a forward wrote is read by the next"
    assert all(not torch.equal(m.values, values) for m, (values, _) in zip(memory_layers(model), before, strict=True))


@pytest.mark.parametrize("fwpkm", [{}, {"boundary": "carry"}, {"num_heads": 2, "lookahead": 2}])
def test_no_token_sees_the_future(fwpkm: dict) -> None:
    """Bit for bit. A sequence shares its memory with the others: they see a change once its chunk is written."""
    model = _model(**fwpkm)
    tokens, positions, _ = batch()
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % VOCABULARY
    before, after = _logits(model, tokens, positions), _logits(model, changed, positions)
    assert torch.equal(before[0, :20], after[0, :20])
    assert torch.equal(before[1, :32], after[1, :32])
    assert not torch.equal(before[0, 20], after[0, 20]) and not torch.equal(before[1, 40:], after[1, 40:])


def test_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(1)
    first = _model().state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = _model().state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first if isinstance(first[name], torch.Tensor))
    weights = [first[f"decoder.layers.{layer}.mlp.linear_fc1.weight"] for layer in (0, 1)]
    assert not torch.equal(*weights)
    assert weights[0].std().item() == pytest.approx(0.1, rel=0.05)
    values = [memory.values for memory in memory_layers(_model())]
    assert not torch.equal(*values)


def test_embedding_has_its_own_deviation() -> None:
    model = _model(model={"embedding_init_method_std": 1.0})
    assert model.embedding.word_embeddings.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert model.shared_embedding_or_output_weight() is model.embedding.word_embeddings.weight


def test_untied_output_layer_has_its_own_weight() -> None:
    model = _model(model={"untie_embeddings_and_output_weights": True})
    weight = model.output_layer.weight
    assert weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(weight, model.embedding.word_embeddings.weight)
    tokens, positions, labels = batch()
    model(tokens, positions, None, labels=labels).mean().backward()
    assert weight.grad is not None


def test_bfloat16_model_keeps_float32_tables_under_every_wrapper() -> None:
    model = _model(bf16=True)
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), Float16Module(model.config, model))
    tokens, positions, labels = batch()
    loss = wrapped(tokens, positions, None, labels=labels)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    memories = memory_layers([wrapped])
    assert len(memories) == 2 and memories == memory_layers(model)
    for memory in memories:
        assert memory.values.dtype == memory.sub_keys.dtype == torch.float32
        assert memory.query_proj.weight.dtype == torch.bfloat16
        assert memory.query_proj.weight.main_grad.abs().sum() > 0


def test_documents_reach_every_memory() -> None:
    model = _model(reset="document")
    starts = torch.zeros(2, 48, dtype=torch.bool)
    starts[:, 24] = True
    model.set_document_starts(starts)
    assert all(memory.document_starts is starts for memory in memory_layers(model))
    tokens, positions, _ = batch()
    other = tokens.clone()
    other[:, :24] = (other[:, :24] + 1) % VOCABULARY
    # Attention crosses the boundary, so the second document's logits change; its memory starts as ever.
    before = _logits(model, tokens, positions)
    assert not torch.equal(before, _logits(model, other, positions))
    model.set_document_starts(None)
    assert all(memory.document_starts is None for memory in memory_layers(model))


@pytest.mark.parametrize("numbers", [(0, 2), (4,)])
def test_layer_that_does_not_exist(numbers: tuple[int, ...]) -> None:
    wrong = numbers[0]
    with pytest.raises(ValueError, match=f"--fwpkm-layer-numbers {wrong} must be between 1 and 3"):
        _model(layer_numbers=numbers)


def test_model_without_memories() -> None:
    model = _model(layer_numbers=())
    assert memory_layers(model) == []
    tokens, positions, labels = batch()
    assert model(tokens, positions, None, labels=labels).shape == (2, 48)
