"""First signal: a wish; second signal: the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from megatron_fwpkm.training.signals import StopSignals


def test_first_signal_is_remembered_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_signal_ends_the_process() -> None:
    code = (
        "import os, signal\n"
        "from megatron_fwpkm.training.signals import StopSignals\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('never', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "still here\n"
    assert done.returncode == -signal.SIGTERM


def test_a_forked_child_goes_on_and_does_not_stop_its_parent() -> None:
    with StopSignals() as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7 if signal.alarm(0) > 0 else 8)  # still here, with an end set
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert stop.received is None
