"""Who is to blame for a failed collective: the ranks that are silent, whatever clocks and host names say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist

from megatron_fwpkm.distributed import liveness
from megatron_fwpkm.distributed.liveness import RollCall, StoreLostError, within

LOST = RuntimeError("[gloo] Connection closed by peer [10.0.0.2]:4711")
Join = Callable[[int, str], RollCall]


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Iterator[Join]:
    """Ranks 0 to 2 of one run, each in a process space of its own or in a common one; hearts beat fast."""
    store = dist.HashStore()
    monkeypatch.setattr(liveness.dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(liveness, "_PATIENCE_SECONDS", 0.2)
    joined = []

    def enter(rank: int, space: str) -> RollCall:
        with monkeypatch.context() as patch:
            patch.setattr(liveness, "process_space", lambda: space)
            roll_call = RollCall(rank, 3)
            roll_call.mark("iteration 4")
        joined.append(roll_call)
        return roll_call

    yield enter
    for roll_call in joined:
        roll_call.close()


def test_a_rank_of_another_host_that_is_silent_is_named_when_steps_tie(join: Join) -> None:
    mine, silent, _ = join(0, liveness.process_space()), join(1, "another machine"), join(2, "a third machine")
    silent.close()
    said = mine.explain(LOST)
    assert said is not None and said.startswith("rank 1 (process ") and "rank 2" not in said
    assert "is silent: it was killed, stopped or cut off from the network (last word: iteration 4)" in said
    assert "ago" not in said  # their clock is not ours


def test_a_healthy_rank_on_a_host_of_the_same_name_is_not_accused(join: Join) -> None:
    """Its process id belongs to nobody here, which proves nothing: the ids are another machine's."""
    mine, other, _ = join(0, liveness.process_space()), join(1, "a copy of this machine"), join(2, "a third machine")
    word = other._read(1)
    assert word is not None
    assert other._judge_process(1, {**word, "pid": 2**22 + 1}) is None
    assert mine.explain(LOST) == f"another rank does not answer ({LOST})"


def test_a_rank_that_is_behind_is_named_when_all_are_there(join: Join) -> None:
    mine, _, ahead = join(0, "one"), join(1, "two"), join(2, "three")
    for rank in (mine, ahead):
        rank.mark("iteration 5")
    said = mine.explain(LOST)
    assert said is not None and "rank 1" in said and "does not answer" in said and "rank 2" not in said


def test_a_store_behind_a_lost_network_holds_nobody(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_STORE_SECONDS", 0.2)
    mine = join(0, "one")
    never = threading.Event()
    monkeypatch.setattr(mine, "_find_suspects", never.wait)
    begin = time.monotonic()
    said = mine.explain(LOST)
    assert said is not None and said.startswith("the run's store does not answer")
    with pytest.raises(StoreLostError, match=r"did not answer within 0.1 s"):
        within(0.1, never.wait)
    assert time.monotonic() - begin < 100
    never.set()


def test_within_hands_on_results_and_errors() -> None:
    assert within(10, lambda: 7) == 7
    with pytest.raises(KeyError, match="x"):
        within(10, lambda: {}["x"])


def test_other_errors_are_not_explained(join: Join) -> None:
    assert join(0, "one").explain(RuntimeError("shapes differ")) is None
