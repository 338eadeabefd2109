"""--fwpkm-cuda-graph: what rules graphs out, what a run says of it, and how many bytes are counted."""

from __future__ import annotations

import pytest

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.cuda_graph_rules import why_no_cuda_graphs
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.validation import problems
from megatron_fwpkm.libraries.choices import check_choices, choose_cuda_graphs, choose_libraries
from megatron_fwpkm.libraries.probes import GRADIENT_KERNEL
from megatron_fwpkm.training.memory_estimate import estimate_memory
from tests.libraries.pretended import findings

MEMORY = ("--fwpkm-layer-numbers", "2", "--global-batch-size", "8")


def configured(mode: str, *words: str) -> PretrainConfig:
    return parse_pretrain(["--num-layers", "4", *MEMORY, "--fwpkm-cuda-graph", mode, *words]).config


@pytest.mark.parametrize(
    ("words", "obstacle"),
    [
        ("--fwpkm-implementation sparse", "--fwpkm-implementation sparse asks the device for numbers"),
        ("--fwpkm-implementation reference", "--fwpkm-implementation reference asks the device for numbers"),
        ("--fwpkm-reset document", "--fwpkm-reset document cuts every batch at other places"),
        ("--fwpkm-reset step --fwpkm-owner sequence", "--fwpkm-owner sequence undoes the writes of every sequence"),
        ("--engine deepspeed", "--engine deepspeed gathers weights"),
        ("--tensor-model-parallel-size 2", "--tensor-model-parallel-size 2 has collectives within the memory"),
        ("--context-parallel-size 2", "--context-parallel-size 2 has collectives within the memory"),
        ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2", "an interleaved pipeline has"),
        ("--fp8-format hybrid", "--fp8-format hybrid changes its scales"),
    ],
)
def test_what_rules_graphs_out_is_refused_with_on_and_said_with_auto(words: str, obstacle: str) -> None:
    refused = [line for line in problems(configured("on", *words.split())) if "--fwpkm-cuda-graph" in line]
    assert len(refused) == 1 and refused[0].startswith(f"--fwpkm-cuda-graph on: {obstacle}"), refused
    assert refused[0].endswith("; use auto or off")
    auto = configured("auto", *words.split())
    assert not [line for line in problems(auto) if "--fwpkm-cuda-graph" in line]
    choice = choose_cuda_graphs(auto, findings())
    assert choice.name == "off" and choice.why.startswith(obstacle) and choice.refusal is None
    assert choice in choose_libraries(auto, findings())


def test_a_model_without_memories_has_no_graphs() -> None:
    config = parse_pretrain(["--num-layers", "2", "--fwpkm-cuda-graph", "on"]).config
    assert any("on: no layer has a product key memory (--fwpkm-layer-numbers)" in line for line in problems(config))


@pytest.mark.parametrize(
    "words",
    [
        "--fwpkm-reset step", "--fwpkm-boundary carry", "--pipeline-model-parallel-size 2",
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        "--rampup-batch-size 2 2 100", "--fwpkm-undo-log recompute", "--fwpkm-table-dtype bf16",
    ],
)  # fmt: skip
def test_what_leaves_all_shapes_as_they_are_does_not(words: str) -> None:
    assert why_no_cuda_graphs(configured("on", *words.split())) is None


def test_without_a_gpu_auto_is_silent_and_on_is_refused() -> None:
    cpu = findings(cuda=False)
    assert all(choice.part != "CUDA graphs" for choice in choose_libraries(configured("auto"), cpu))
    with pytest.raises(ValueError, match=r"^--fwpkm-cuda-graph on: CUDA is not available; use auto or off$"):
        check_choices(choose_libraries(configured("on"), cpu))
    assert choose_cuda_graphs(configured("auto"), findings()).name == "on"
    assert choose_cuda_graphs(configured("off"), findings()).name == "off"


def test_gradients_that_are_added_within_backward_are_not_captured() -> None:
    fused = findings(GRADIENT_KERNEL)
    assert choose_cuda_graphs(configured("auto"), fused).why.startswith("gradient accumulation fusion")
    assert choose_cuda_graphs(configured("on", "--gradient-accumulation-fusion", "off"), fused).name == "on"


def test_every_micro_batch_in_flight_is_counted() -> None:
    def graphs(stage: int, *words: str) -> int:
        config = configured("on", "--fwpkm-layer-numbers", "1", "4", *words)
        return estimate_memory(config, 512, 2, stage).graphs

    pipeline = ("--pipeline-model-parallel-size", "2")
    assert graphs(0, *pipeline) == 2 * graphs(1, *pipeline) == graphs(0) > 0
    assert graphs(0, "--fwpkm-cuda-graph", "off") == 0
    assert graphs(0, "--fwpkm-cuda-graph", "auto", "--fwpkm-reset", "document") == 0
    found = estimate_memory(configured("on"), 512, 1)
    assert found.total - estimate_memory(configured("off"), 512, 1).total == found.graphs
