"""--fwpkm-cuda-graph in the engine, on pretended graphs: who is captured, and that a pipeline computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from megatron_fwpkm.engines.memory_graphs import capture_memories
from tests.engines.test_engine import BASE, VOCABULARY, assert_same_state, batches, change, state_of
from tests.layers.pretended_graphs import pretended_graphs
from tests.libraries.pretended import pretended
from tests.spawned_ranks import run_distributed


def configured(cuda_graph: str, implementation: str = "triton", **parallel: Any) -> PretrainConfig:
    """Two layers with memories that are reset every step, in short chunks."""
    fwpkm = {"cuda_graph": cuda_graph, "implementation": implementation, "reset": "step", "layer_numbers": (1, 2)}
    short = change(change(BASE, "fwpkm", chunk_size=12, **fwpkm), "model", seq_length=24)
    return change(short, "parallel", **parallel)


def train(rank: int, size: int, chosen: PretrainConfig) -> tuple[list[Any], dict[str, torch.Tensor], list[int]]:
    """Numbers and state of two steps of four micro-batches, and how often every graph was replayed."""
    with pretended(), pretended_graphs() as graphs, megatron_run(chosen.parallel, chosen.training) as world:
        engine, source = MegatronEngine(chosen, VOCABULARY, world.device), batches(0)
        numbers = [engine.train_step(source) for _ in range(2)]
        return numbers, state_of(engine), [graph.replays for graph in graphs]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_pipeline_computes_the_same_in_graphs() -> None:
    plain, graphed = (
        run_distributed(train, 2, configured(mode, pipeline_model_parallel_size=2), timeout=180)
        for mode in ("off", "on")
    )
    for (numbers, state, _), (expected, other, none) in zip(graphed, plain, strict=True):
        assert numbers == expected and not none
        assert_same_state(state, other)
    # The first stage has two micro-batches in flight, the last one; four a step.
    assert [replays for _, _, replays in graphed] == [[4] * 4, [8] * 2]


@pytest.mark.parametrize("wanted", ["auto", "on"])
def test_a_memory_that_would_wait_is_not_captured(wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = configured(wanted, "auto")  # on the CPU that is `sparse`
    with pretended(), megatron_run(chosen.parallel, chosen.training) as world:
        engine = MegatronEngine(change(chosen, "fwpkm", cuda_graph="off"), VOCABULARY, world.device)
        message = "the memory of layer 1 runs as sparse, and only triton never waits"
        if wanted == "on":
            with pytest.raises(ValueError, match=f"^--fwpkm-cuda-graph on: {message}; use auto or off$"):
                capture_memories(chosen, engine.memories, 1, 0)
        else:
            capsys.readouterr()
            capture_memories(chosen, engine.memories, 1, 0)
            assert capsys.readouterr().out == f"CUDA graphs off: {message}\n"
