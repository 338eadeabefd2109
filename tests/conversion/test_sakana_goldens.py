"""The authors' tiny language model, imported by the command, against what their code computed: training, streaming."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_fwpkm.conversion.sakana_weights import our_weights
from megatron_fwpkm.hf import FwPKMForCausalLM, static_memory
from megatron_fwpkm.ops import FastWeightOutput
from tests.conftest import Golden
from tools.convert_checkpoint import main as convert

from .released import write_released

MEMORIES = (0, 3)
assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def golden(goldens: Callable[[str], Golden]) -> Golden:
    return goldens("model_train")


@pytest.fixture(scope="module")
def folder(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of the model."""
    source = write_released(tmp_path_factory.mktemp("theirs"), golden)
    target = source.parent / "ours"
    assert convert(["import", "--from", "sakana", "--checkpoint", str(source), "--output", str(target)]) == 0
    return target


class Trained:
    """The model after one forward and backward, and what its layers saw."""

    def __init__(self, folder: Path, golden: Golden):
        self.model = FwPKMForCausalLM.from_pretrained(folder).train()
        ids = golden["in.input_ids"]
        # Their training gives a memory before full attention a mask, of ones, and one before linear attention none:
        # without a mask a write is chunk / (chunk - lookahead) times as large (DESIGN 2.2).
        self.masks = {0: None, 3: torch.ones(ids.shape)}
        self.before: dict[int, Tensor] = {}
        self.after: dict[int, Tensor] = {}
        for index, layer in enumerate(self.model.model.layers):
            layer.register_forward_pre_hook(lambda module, given, index=index: self.before.update({index: given[0]}))
            layer.register_forward_hook(lambda module, given, out, index=index: self.after.update({index: out}))
            if index in MEMORIES:
                layer.memory.forward = partial(layer.memory.forward, mask=self.masks[index])
        self.logits = self.model(ids, memory="shared").logits
        # Their labels are those of the tokens themselves: not shifted.
        self.loss = F.cross_entropy(self.logits.flatten(0, 1), golden["in.labels"].flatten())
        self.loss.backward()

    def memory(self, index: int) -> tuple[Tensor, FastWeightOutput]:
        """The gates of a memory, and what reading and writing the layer's input gives."""
        block = self.model.model.layers[index].memory
        queries, targets, gates = block.project(self.before[index])
        found = block.functions.read_and_write(
            queries, targets, gates, self.masks[index], block.initial(), block.options, in_place=False
        )
        return gates, found


@pytest.fixture(scope="module")
def trained(folder: Path, golden: Golden) -> Trained:
    return Trained(folder, golden)


def test_logits_and_loss(trained: Trained, golden: Golden) -> None:
    assert_close(trained.logits, golden["f32.logits"])
    assert_close(trained.loss.reshape(1), golden["f32.loss"])


@pytest.mark.parametrize("index", range(4))
def test_hidden_states(index: int, trained: Trained, golden: Golden) -> None:
    assert_close(trained.after[index], golden[f"f32.layer{index}.hidden_states"])


@pytest.mark.parametrize("index", MEMORIES)
def test_what_a_memory_reads_and_writes(index: int, trained: Trained, golden: Golden) -> None:
    gates, found = trained.memory(index)
    expected = {name: golden[f"f32.layer{index}.fwpkm_{name}"] for name in ("gates", "idcs", "scores", "losses")}
    assert_close(gates.unsqueeze(-1), expected["gates"])
    assert torch.equal(found.slot_indices, expected["idcs"].long())
    assert_close(found.slot_weights, expected["scores"])
    assert_close(found.memorization_loss, expected["losses"])
    theirs = f"f32.final.model.layers.{index}.fwpkm"
    assert_close(found.state.sub_keys.flatten(0, 2), golden[f"{theirs}.keys"])
    assert_close(found.state.whole_values(), golden[f"{theirs}.values"])


def test_the_slots_of_the_static_memory(trained: Trained, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    found, choose = [], static_memory.choose_slots

    def recorded(*arguments: Any) -> tuple[Tensor, Tensor]:
        found.append(choose(*arguments))
        return found[-1]

    monkeypatch.setattr(static_memory, "choose_slots", recorded)
    layer = trained.model.model.layers[1]
    with torch.no_grad():
        mixed = trained.before[1]
        mixed = mixed + layer.linear_attn(layer.input_layernorm(mixed), (mixed, mixed), None, None)
        layer.mlp(layer.post_attention_layernorm(mixed))
    expected = golden["f32.layer1.pkm_idcs"].flatten(0, 1).long()
    assert torch.equal(found[0][0].flatten(1), expected)


def test_gradients(trained: Trained, golden: Golden) -> None:
    """Names and layouts of gradients follow from those of weights."""
    model = trained.model
    theirs = {name.removeprefix("f32.grad."): x for name, x in golden.tensors.items() if name.startswith("f32.grad.")}
    tables = {name.removeprefix("f32.final."): x for name, x in golden.tensors.items() if name.startswith("f32.final.")}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    mapped = our_weights(theirs | tables, shapes, model.config)
    nothing = our_weights({name: torch.zeros_like(x) for name, x in (theirs | tables).items()}, shapes, model.config)
    own = dict(model.named_parameters())
    assert len(own) == len(theirs) and all(parameter.grad is not None for parameter in own.values())
    for name, parameter in own.items():
        expected = mapped[name] - nothing[name]
        if ".memory.gate_proj." in name:  # ours is the mean of their eight rows, whose gradients add up to its own
            expected = 8 * expected
        largest = expected.abs().max().item()
        rounding = 1e-7 if name.endswith("mlp.query_norm.weight") else 1e-9  # the import takes 1 from its weights
        assert largest > 0 and (parameter.grad - expected).abs().max() <= 1e-5 * largest + rounding, name


def test_streaming(folder: Path, goldens: Callable[[str], Golden]) -> None:
    golden, model = goldens("model_infer"), FwPKMForCausalLM.from_pretrained(folder)
    ids, cache, logits, waiting = golden["in.input_ids"], model.new_cache(), [], []
    with torch.no_grad():
        for start, stop in pairwise((0, *range(50, 81))):
            logits.append(model(ids[:, start:stop], cache=cache).logits)
            waiting.append([cache.memory[index].state.num_pending for index in MEMORIES])
    assert_close(torch.cat(logits, 1), golden["f32.logits"])
    assert waiting == golden.meta["queue_after"]
    for index in MEMORIES:
        theirs, state = f"f32.final.model.layers.{index}.fwpkm", cache.memory[index].state
        assert_close(state.sub_keys.flatten(0, 2), golden[f"{theirs}.keys"])
        assert_close(state.whole_values(), golden[f"{theirs}.values"])


def test_the_packages_own_arithmetic_is_another(folder: Path, goldens: Callable[[str], Golden]) -> None:
    """What --write-scale consistent gives from the second write of a text on, which is that of single tokens."""
    golden, model = goldens("model_infer"), FwPKMForCausalLM.from_pretrained(folder, fwpkm_write_scale="consistent")
    ids, cache = golden["in.input_ids"], model.new_cache()
    with torch.no_grad():
        pieces = [model(ids[:, start:stop], cache=cache).logits for start, stop in pairwise((0, *range(50, 81)))]
    assert (torch.cat(pieces, 1) - golden["f32.logits"]).abs().max() > 1e-2
