"""How often a step makes the host wait for the device; the statistics add one wait, where they are read."""

from __future__ import annotations

import pytest

from megatron_fwpkm.engines.megatron import MegatronEngine
from megatron_fwpkm.engines.megatron_groups import megatron_run
from tests.engines.test_engine import BASE, VOCABULARY, batches
from tests.ops.host_waits import host_waits

pytestmark = pytest.mark.timeout(120)


def test_statistics_wait_once_when_they_are_read_and_never_in_a_step() -> None:
    with megatron_run(BASE.parallel, BASE.training) as world:
        engine, data = MegatronEngine(BASE, VOCABULARY, world.device), batches(0)
        engine.train_step(data)
        with host_waits() as in_step:
            engine.train_step(data)
        with host_waits() as in_report:
            report = engine.memory_report()
        with host_waits() as on_device:
            engine.memories[0].statistics_on_device()
    assert not on_device
    assert in_report == {"tolist": 1}
    assert report.layers.keys() == {2}
    # Per micro-batch the slots that the CPU's implementation reads; and the losses, which must be finite every step.
    assert in_step["tolist"] == 4 + 1
