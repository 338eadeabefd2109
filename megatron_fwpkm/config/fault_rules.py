"""Rules between the options about faults and the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from .faults import FaultConfig
from .pretrain import PretrainConfig


def fault_problems(config: PretrainConfig) -> Iterator[str]:
    """A sentence for every violated rule."""
    faults, checkpoint = config.faults, config.checkpoint
    factor = faults.loss_spike_factor
    rewinds = {"--on-nan rewind": faults.on_nan == "rewind", f"--loss-spike-factor {factor}": factor is not None}
    for flag in (flag for flag, is_given in rewinds.items() if is_given):
        if checkpoint.save is None or checkpoint.save_interval is None:
            yield f"{flag} continues from an earlier checkpoint of the run: give --save and --save-interval, too"
    defaults = {item.name: item.default for item in fields(FaultConfig)}
    needs = {
        "loss_spike_window": ("--loss-spike-factor", factor is not None),
        "loss_spike_steps": ("--loss-spike-factor", factor is not None),
        "straggler_threshold": ("--log-straggler", faults.log_straggler),
    }
    for name, (other, is_given) in needs.items():
        value = getattr(faults, name)
        if not is_given and value != defaults[name]:
            yield f"--{name.replace('_', '-')} {value} has no effect without {other}: give it, too"
