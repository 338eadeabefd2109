"""The memory on CUDA equals the dense float64 oracle on the CPU: reads, tables, gradients."""

from __future__ import annotations

import pytest
import torch

from megatron_fwpkm.ops import (
    FastWeightOutput,
    FastWeightState,
    UndoLog,
    fast_weight_memory,
    fast_weight_memory_,
    make_rounding,
)

pytestmark = pytest.mark.gpu


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "queries": draw(2, 75, 2, 16),
        "targets": draw(2, 75, 12),
        "gates": draw(2, 75).sigmoid(),
        "sub_keys": draw(2, 2, 16, 8) * 0.3,
        "values": draw(256, 12),
    }


def run(
    device: str, implementation: str, dtype: torch.dtype, **options: object
) -> tuple[FastWeightOutput, list[torch.Tensor]]:
    tensors = {name: x.to(device, dtype).requires_grad_() for name, x in inputs().items()}
    state = FastWeightState(tensors.pop("sub_keys"), tensors.pop("values"))
    output = fast_weight_memory(
        *tensors.values(), state, topk=4, chunk_size=16, lookahead=2, implementation=implementation, **options
    )
    weights = torch.cos(torch.arange(output.retrieved.numel(), device=device, dtype=dtype)).view_as(output.retrieved)
    wanted = [*tensors.values(), state.sub_keys, state.values]
    return output, list(torch.autograd.grad((output.retrieved * weights).sum(), wanted))


@pytest.mark.parametrize("implementation", ["plain", "sparse", "reference", "triton"])
@pytest.mark.parametrize("boundary", ["drop", "carry"])
@pytest.mark.parametrize("score", ["idw", "dot_product"])
def test_float64_on_cuda_equals_the_oracle(implementation, boundary, score):
    expected, expected_gradients = run("cpu", "reference", torch.float64, boundary=boundary, score=score)
    actual, gradients = run("cuda", implementation, torch.float64, boundary=boundary, score=score)
    torch.testing.assert_close(actual.slot_indices.cpu(), expected.slot_indices)
    torch.testing.assert_close(actual.retrieved.cpu(), expected.retrieved, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual.state.values.cpu(), expected.state.values, rtol=1e-12, atol=1e-12)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.cpu(), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("switches", ["old", "new"])
def test_tf32_around_it_changes_no_digit(switches):
    exact, _ = run("cuda", "sparse", torch.float32)
    if switches == "old":
        torch.set_float32_matmul_precision("high")
    else:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        allowed, _ = run("cuda", "sparse", torch.float32)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(exact.retrieved, allowed.retrieved)


def test_auto_is_triton():
    (automatic, _), (triton, _) = run("cuda", "auto", torch.float32), run("cuda", "triton", torch.float32)
    assert torch.equal(automatic.retrieved, triton.retrieved)


def test_a_hundred_runs_give_the_same_bits():
    expected, expected_gradients = run("cuda", "triton", torch.float32)
    for _ in range(100):
        actual, gradients = run("cuda", "triton", torch.float32)
        assert torch.equal(actual.retrieved, expected.retrieved)
        assert torch.equal(actual.state.values, expected.state.values)
        assert all(torch.equal(one, other) for one, other in zip(gradients, expected_gradients, strict=True))


def test_another_stream_gives_the_same_bits():
    expected, expected_gradients = run("cuda", "triton", torch.float32)
    with torch.cuda.stream(torch.cuda.Stream()):
        actual, gradients = run("cuda", "triton", torch.float32)
    torch.cuda.synchronize()
    assert torch.equal(actual.state.values, expected.state.values)
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected_gradients, strict=True))


def test_a_graph_holds_forward_and_backward_of_the_values():
    """Nothing is decided on the host: what was captured once reads and writes for other slots and values, too."""
    from tests.ops.triton.values import LEAVES, apply_triton, gradients_of, make_values, random_slots

    first, second = (make_values(random_slots(40, 4, seed=seed), seed=seed).to(torch.float32) for seed in (1, 2))
    leaves = {name: getattr(first, name).clone().requires_grad_() for name in LEAVES}
    table, slots = first.values.clone(), first.slots.clone()
    first.slots = slots

    def step() -> dict[str, torch.Tensor]:
        reads, squares = apply_triton(first, leaves, table, UndoLog())
        return {"reads": reads, "squares": squares, "table": table, **gradients_of(reads, leaves)}

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(getattr(second, name))
        table.copy_(second.values)
        slots.copy_(second.slots)
        first.scales.copy_(second.scales)
    graph.replay()
    actual = {name: tensor.detach().clone() for name, tensor in captured.items()}
    second_leaves = {name: getattr(second, name).clone().requires_grad_() for name in LEAVES}
    second_table = second.values.clone()
    reads, squares = apply_triton(second, second_leaves, second_table, UndoLog())
    expected = {"reads": reads, "squares": squares, "table": second_table, **gradients_of(reads, second_leaves)}
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_the_current_device_does_not_matter():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    (expected, gradients), (actual, others) = (run(device, "triton", torch.float32) for device in ("cuda:0", "cuda:1"))
    assert torch.cuda.current_device() == 0 and actual.retrieved.get_device() == 1
    assert torch.equal(actual.retrieved.cpu(), expected.retrieved.cpu())
    assert all(torch.equal(one.cpu(), other.cpu()) for one, other in zip(gradients, others, strict=True))


class Training:
    """Forward and backward of one memory in place, as a layer does it, on tables that can be put back."""

    def __init__(self, table: torch.dtype, undo_log: str) -> None:
        tensors = {name: x.to("cuda", torch.float32) for name, x in inputs().items()}
        self.initial = FastWeightState(
            tensors.pop("sub_keys"),
            tensors.pop("values").to(table),
            None,
            make_rounding(7, device="cuda") if table == torch.bfloat16 else None,
        )
        self.leaves = [x.requires_grad_() for x in tensors.values()]
        self.undo_log = undo_log
        self.state = FastWeightState(
            self.initial.sub_keys.clone(),
            self.initial.values.clone(),
            None,
            None if self.initial.rounding is None else self.initial.rounding.clone(),
        )

    def reset(self) -> None:
        """Put the tables back."""
        for name in ("sub_keys", "values", "rounding"):
            table = getattr(self.state, name)
            if table is not None:
                table.copy_(getattr(self.initial, name))

    def step(self) -> list[torch.Tensor]:
        """Reads and gradients."""
        output = fast_weight_memory_(
            *self.leaves, self.state, topk=4, chunk_size=16, implementation="triton", undo_log=self.undo_log
        )
        return [output.retrieved, *torch.autograd.grad(output.retrieved.square().sum(), self.leaves)]


FORMS = [
    (torch.float32, "fp32"),
    (torch.float32, "bf16"),
    (torch.float32, "recompute"),
    (torch.bfloat16, "fp32"),
    (torch.bfloat16, "recompute"),
]


@pytest.mark.parametrize(("table", "undo_log"), FORMS)
def test_a_step_never_waits_for_the_gpu(table, undo_log):
    training = Training(table, undo_log)
    training.step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = training.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize(("table", "undo_log"), FORMS)
def test_a_graph_that_is_replayed_goes_on_writing(table, undo_log):
    training = Training(table, undo_log)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        training.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = training.step()
    training.reset()
    replayed = []
    for _ in range(2):
        graph.replay()
        replayed.append([tensor.detach().clone() for tensor in captured])
    tables = training.state.sub_keys.clone(), training.state.values.clone()
    training.reset()
    for found in replayed:
        assert all(torch.equal(one, other) for one, other in zip(found, training.step(), strict=True))
    assert torch.equal(tables[0], training.state.sub_keys) and torch.equal(tables[1], training.state.values)
    assert not torch.equal(tables[1], training.initial.values)
