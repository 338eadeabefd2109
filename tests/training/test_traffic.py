"""What a model without memories sends in a step, as docs/scaling.md says; a memory's share is in test_collectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.derived import kv_channels, num_query_groups
from tests.engines.test_engine import VOCABULARY, batches, change
from tests.spawned_ranks import run_distributed
from tests.training.test_parallel_layouts import ROWS, configured
from tests.training.trained_layouts import SP, ZERO

_NAMES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "isend", "irecv")
Sent = Counter[tuple[str, int]]


@contextmanager
def counted() -> Iterator[Sent]:
    """Calls among several ranks by name and elements of the larger of input and output."""
    import megatron.core.distributed.param_and_grad_buffer as buffers
    import megatron.core.tensor_parallel.layers as layers
    import megatron.core.tensor_parallel.mappings as mappings

    dist = torch.distributed
    sent: Sent = Counter()

    def wrap(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if dist.get_world_size(kwargs.get("group")) > 1:
                tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
                sent[name, max(x.numel() for x in tensors)] += 1
            return original(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in _NAMES:
            stack.enter_context(patch.object(dist, name, wrap(name, getattr(dist, name))))
        for module in (buffers, layers, mappings):
            for alias, name in (("dist_all_gather_func", _NAMES[1]), ("dist_reduce_scatter_func", _NAMES[2])):
                if hasattr(module, alias):
                    stack.enter_context(patch.object(module, alias, wrap(name, getattr(module, alias))))
        yield sent


def one_step(rank: int, world_size: int, names: list[str]) -> list[tuple[Sent, int]]:
    """What this rank sends in a step of every layout, and its parameters."""
    from megatron.core import parallel_state

    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    found = []
    for name in names:
        layout = ROWS[name]
        with megatron_run(config_of(name).parallel, config_of(name).training) as world:
            engine = MegatronEngine(config_of(name), VOCABULARY, world.device)
            source = batches(0, parallel_state.get_data_parallel_rank(), layout.replicas)
            with counted() as sent:
                engine.train_step(source)
            found.append((sent, sum(p.numel() for chunk in engine.chunks for p in chunk.parameters())))
    return found


def config_of(name: str) -> PretrainConfig:
    """A row of the layout table without its memories, of any kind."""
    config = configured(ROWS[name], "float32", "never")
    for memories in ("fwpkm", "fwmlp", "pkm"):
        config = change(config, memories, layer_numbers=())
    return config


def expected(name: str, parameters: int) -> Sent:
    """The formulas of docs/scaling.md, for two processes."""
    layout, model = ROWS[name], config_of(name).model
    layers, hidden, tokens = model.num_layers, model.hidden_size, model.seq_length
    micro = 4 // layout.replicas
    inputs, keys_and_values = tokens * hidden, 2 * num_query_groups(model) * kv_channels(model)
    sent: Sent = Counter()
    if layout.tp > 1 and not layout.more:
        sent["all_reduce", inputs] = 2 * (2 * layers + 1) * micro
        sent["all_reduce", tokens] = 3 * micro
    elif layout.tp > 1:
        sent["reduce_scatter_tensor", inputs] = 2 * (2 * layers + 1) * micro
        sent["all_gather_into_tensor", inputs] = 3 * (2 * layers + 1) * micro
        sent["all_reduce", tokens] = 3 * micro
    if layout.tp > 1:  # weights of norms that ranks have alike but use for different heads or tokens
        norms = layers * 2 * kv_channels(model) + (hidden * (2 * layers + 1) if layout.more == SP else 0)
        sent["all_reduce", norms] = 1
    if layout.cp > 1:
        sent["all_gather_into_tensor", tokens * keys_and_values] = layers * micro
        sent["reduce_scatter_tensor", tokens * keys_and_values] = layers * micro
    if layout.pp > 1:
        sent["isend", inputs] = sent["irecv", inputs] = micro
        sent["all_reduce", VOCABULARY * hidden] = 1
    if layout.more == ZERO:
        sent["reduce_scatter_tensor", parameters] = sent["all_gather_into_tensor", parameters] = 1
    elif layout.replicas * layout.cp > 1:
        sent["all_reduce", parameters] = 1
    return sent


@pytest.mark.usefixtures("cpu_compat")
def test_a_step_sends_what_is_documented() -> None:
    names = ["TP2", "TP2 SP", "CP2", "PP2", "DP2", "DP2 ZeRO-1"]
    for ranks in run_distributed(one_step, 2, names, timeout=100):
        for name, (sent, parameters) in zip(names, ranks, strict=True):
            found: Sent = Counter()
            for (call, elements), calls in sent.items():
                if elements >= 24:  # not the losses and the gradient norm
                    # The buffers of gradients and weights have gaps between parameters.
                    whole = parameters <= elements < 1.1 * parameters
                    found[call, parameters if whole else elements] += calls
            assert found == expected(name, parameters), name
