"""A rank of a run to which something happens: `python -m tests.training.faulty_run FAULT pretrain-flags...`.

FAULT is JSON: {"rank": 1, "when": "save" or "step", "count": 2, "signal": "SIGKILL"}: at the count-th save or step of
this process, the rank sends itself the signal. An empty object leaves the run alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def strike(place: type, method: str, count: int, number: signal.Signals) -> None:
    """Let this process send itself a signal when a method is called for the count-th time."""
    original: Callable[..., Any] = getattr(place, method)
    calls = 0

    def replacement(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(place, method, replacement)


def main() -> int:
    """Arm the fault and train."""
    import pretrain
    from megatron_fwpkm.checkpoint.fast_weight_store import FastWeightStore
    from megatron_fwpkm.config.cli import run_cli
    from megatron_fwpkm.training.engine import MegatronEngine

    fault = json.loads(sys.argv[1])
    if fault and str(fault["rank"]) == os.environ.get("RANK", "0"):
        number = signal.Signals[fault["signal"]]
        if fault["when"] == "save":  # the slow weights lie on disk by then, the fast weights and the record do not
            for method in ("save", "request_to_save"):
                strike(FastWeightStore, method, fault["count"], number)
        else:
            strike(MegatronEngine, "train_step", fault["count"], number)
    return run_cli(pretrain.main, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
