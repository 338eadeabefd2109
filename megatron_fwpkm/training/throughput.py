"""--log-throughput: what a run achieves of what its devices could, from formulas and the time of its steps."""

from __future__ import annotations

import logging

import torch

from ..config import PretrainConfig
from ..config.device_peaks import bf16_peak_tflops
from ..config.layer_kind import LAYER_KINDS
from ..config.layer_kinds import layer_plan
from ..config.model_flops import training_flops
from ..distributed.startup import World
from ..engines.memory_report import MemoryReport
from .metrics import JsonRecord

logger = logging.getLogger("megatron_fwpkm")


class Throughput:
    """Figures of an interval of steps for its record."""

    def __init__(self, config: PretrainConfig, vocab_size: int, world: World) -> None:
        """`vocab_size` is the tokenizer's. Without --log-throughput there are no figures."""
        self._config, self._devices = config, world.size
        self._wanted = config.logging.log_throughput
        self._flops = training_flops(config, vocab_size)
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else str(world.device)
        self._peak = config.logging.peak_tflops
        if self._peak is None and config.training.bf16:
            self._peak = bf16_peak_tflops(name)
        if self._wanted:
            against = "without MFU: give --peak-tflops" if self._peak is None else f"MFU is of {self._peak:g} TFLOP/s"
            logger.info("logging model FLOPs, %.3g per token, on %s; %s", self._flops, name, against)

    def figures(self, tokens: int, seconds: float, report: MemoryReport) -> JsonRecord:
        """Of steps with `tokens` of all replicas in `seconds`; `report` is of the memories after them."""
        if not self._wanted:
            return {}
        per_device = tokens / max(seconds, 1e-9) / self._devices
        tflops = self._flops * per_device / 1e12
        found: JsonRecord = {"tflops_per_device": tflops}
        if self._peak is not None:
            found["mfu"] = tflops / self._peak
        if (moved := self._table_bytes(report)) > 0:
            found["memory_gb_per_second"] = moved * per_device / 1e9
        return found

    def _table_bytes(self, report: MemoryReport) -> float:
        """Bytes that a token moves in all memories, whose reads collide as in the report."""
        total, plan = 0.0, layer_plan(self._config)
        for number, statistics in report.layers.items():
            for name in plan[number - 1].names:
                traffic = LAYER_KINDS[name].traffic
                if traffic is not None:
                    total += traffic(self._config, 1.0 - statistics.collisions).total
        return total
