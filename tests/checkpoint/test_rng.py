"""Random states come back as they were saved, and a file that holds anything else changes and runs nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fwpkm.checkpoint.rng import load_rng_state, rng_file, rng_state, save_rng_state


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.mkdir, (self.target,))


def draws() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(1))]


def test_states_come_back(tmp_path: Path) -> None:
    draws()
    save_rng_state(tmp_path, 3, {"dropout": torch.tensor([7])})
    expected = draws()
    assert draws() != expected
    own = load_rng_state(tmp_path, 3)
    assert draws() == expected
    assert own.keys() == {"dropout"} and own["dropout"].tolist() == [7]


@pytest.mark.parametrize("damage", ["code", "cut", "text"])
def test_a_foreign_file_is_refused_and_nothing_runs(damage: str, tmp_path: Path) -> None:
    save_rng_state(tmp_path, 0, {})
    file, trace = rng_file(tmp_path, 0), tmp_path / "was_here"
    if damage == "code":
        torch.save(rng_state() | {"more": Malicious(trace)}, file)
    else:
        file.write_bytes(file.read_bytes()[:-40] if damage == "cut" else b"no states")
    state = random.getstate(), torch.get_rng_state()
    with pytest.raises(ValueError, match="rng_00000.pt contains no random states: it is damaged, or contains code"):
        load_rng_state(tmp_path, 0)
    assert not trace.exists()
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
