"""What changes would gain that are not built: on a small account whose answers are computed by hand."""

from __future__ import annotations

import pytest

from benchmarks import not_built
from benchmarks.cost_model import LAUNCH_SECONDS, UTILISATION, Surroundings, Work
from benchmarks.not_built import SideBySide, chains_table, not_built_table
from tests.benchmarks.test_roofline import UNIT

PHASES = {
    "forward": [
        *[Work("address_kernel", 2.5e5, scores=2e5)] * 2,  # 0.25 ms each
        *[Work("write_rows_kernel", 2e6)] * 2,  # 2 ms at the speed of streams, 3 ms at that of rows
        *[Work("torch.bmm", 3e5, flops=1e6)] * 2,  # 1 ms by operations, 0.1 ms by a tensor core's
        *[Work("torch.sort", 1e5)] * 2,  # 0.1 ms each
        Work("torch.sort", 4e5),  # 0.4 ms, of both chunks
        Work("torch.mm", 1e6, flops=1e6),  # 1 ms
    ]
}
"""Of two chunks: 2 * (0.25 + 3 + 1 + 0.1) + 0.4 + 1 = 10.1 ms in ten launches."""
MODEL_SECONDS, LAYERS = 0.1, 3


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both as fast; only one knows bulk copies."""
    monkeypatch.setattr(not_built, "GPUS", {"A100": UNIT, "H100": UNIT})


def changes(launch_seconds: float = 0.0) -> not_built.Changes:
    """Of the account above."""
    around = Surroundings(launch_seconds, 0, MODEL_SECONDS * UNIT.bfloat16 * UTILISATION, LAYERS)
    return not_built.not_built(PHASES, around, 2)


def test_every_change_gains_what_it_can() -> None:
    found = changes()
    layers = {change: by_gpu["H100"]["graph"]["layer"] for change, by_gpu in found.items()}
    assert layers == {
        # Three passes take 0.3 ms, in which 0.05 ms of bytes are left.
        "scores and selection in one kernel": pytest.approx([10.1, 2 * (0.3 + 0.1 + 3) + 1.4]),
        # 1.35 ms of the key chain, twice 3 ms of the value chain.
        "the chains on two streams": pytest.approx([10.1, 1.35 + 3 + 3 + 1.4]),
        "bulk copies of rows": pytest.approx([10.1, 2 * (1.35 + 2) + 1.4]),
        # The chains' 0.4 and 2 ms move 2.15 ms of bytes.
        "all three": pytest.approx([10.1, 0.4 + 2.15 + 2 + 1.4]),
    }
    ratio = found["bulk copies of rows"]["H100"]["graph"]["ratio"]
    assert ratio == pytest.approx([1 + LAYERS * 0.0101 / MODEL_SECONDS, 1 + LAYERS * 0.0081 / MODEL_SECONDS])


def test_an_older_gpu_has_no_bulk_copies() -> None:
    found = {change: by_gpu["A100"]["graph"]["layer"][1] for change, by_gpu in changes().items()}
    assert found["bulk copies of rows"] == pytest.approx(10.1)
    assert found["all three"] == pytest.approx(0.4 + 3 + 3 + 1.4)


def test_a_host_that_is_slower_gains_by_launches_alone() -> None:
    found = {change: by_gpu["H100"]["eager"]["layer"] for change, by_gpu in changes(2e-3 - LAUNCH_SECONDS).items()}
    assert found["scores and selection in one kernel"] == pytest.approx([20, 16]), "ten launches, and eight"
    assert found["the chains on two streams"] == pytest.approx([20, 20])
    assert found["bulk copies of rows"] == pytest.approx([20, 20])


def test_two_streams_share_the_bandwidth() -> None:
    stream = [Work("copy", 1e6)] * 4
    assert SideBySide(stream, stream, 4).seconds(UNIT, 0.0) == pytest.approx(8e-3), "nothing is hidden"
    product = [Work("mm", 0, flops=1e6)] * 4
    assert SideBySide(product, stream, 4).seconds(UNIT, 0.0) == pytest.approx(5e-3)
    assert SideBySide([], stream, 4).seconds(UNIT, 0.0) == pytest.approx(4e-3)
    assert SideBySide(product, stream, 4).launches == 8


def test_the_tables_show_it() -> None:
    rows = {row[0]: row[1:] for row in not_built_table(changes()).rows}
    assert rows["bulk copies of rows, with CUDA graphs"] == ["no gain", "10.10 to 8.10 ms (-20 %), 1.30 to 1.24x"]
    chains = {row[0]: row[1:] for row in chains_table(PHASES, 2).rows}
    assert chains["sub-keys, forward"] == ["2.70: compute 2.00, memory 0.70"] * 2
    assert chains["values, forward"] == ["6.00: memory 6.00"] * 2
