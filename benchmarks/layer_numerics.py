"""How far gradients of Transformer Engine's layers, in bfloat16 and in FP8, are from those of a model in float32.

`python -m benchmarks.layer_numerics`; ends with status 3 where Transformer Engine cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import hardware
from benchmarks.model import SIZES
from benchmarks.report import make_output_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from megatron_fwpkm.config import PretrainConfig

SKIPPED = 3
"""Exit status where there is nothing to compare."""
WORSE_THAN_LOCAL = 2.0
"""How many times the error of local layers in bfloat16 those of Transformer Engine may have."""
FP8_LOSS = 0.05
"""How far the loss in FP8 may be from that in float32, relative to it."""

_ENGINE = ["--bf16", "--transformer-impl", "transformer_engine"]
VARIANTS = {
    "local, float32": ["--no-bf16", "--transformer-impl", "local"],
    "local, bfloat16": ["--bf16", "--transformer-impl", "local"],
    "Transformer Engine, bfloat16": _ENGINE,
    "Transformer Engine, bfloat16, torch's attention": [*_ENGINE, "--attention-backend", "local"],
    "Transformer Engine, FP8 delayed": [*_ENGINE, "--fp8-format", "hybrid"],
    "Transformer Engine, FP8 tensorwise": [*_ENGINE, "--fp8-format", "hybrid", "--fp8-recipe", "tensorwise"],
}
"""Flags by name; the first one is what the others are compared with."""
_SHAPE = ["--micro-batch-size", "1", "--global-batch-size", "1", "--layer-pattern", "fa"]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print a row for every variant and write them; returns 1 where one is too far off, 3 where skipped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer_numerics", description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="paper", help="default: paper")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the JSON file")
    arguments = parser.parse_args(argv)
    from megatron_fwpkm.libraries.choices import choose_layers
    from megatron_fwpkm.libraries.probes import installed

    choice = choose_layers(_config(arguments.size, []), installed())
    if choice.name == "local":
        print(f"skipped: {choice.why}")
        return SKIPPED
    if not make_output_folder(arguments.output):
        return 2
    rows = compare(arguments.size)
    for row in rows:
        print(f"{row['what']:48} loss {row['loss']:.5f}  loss off {row['loss off']:.1e}  gradient off {row['off']:.1e}")
    failures = judge(rows)
    device = hardware.title(hardware.resolve("auto"))
    written = json.dumps({"device": device, "layers": choice.shown, "rows": rows, "failures": failures}, indent=2)
    (arguments.output / f"layer_numerics_{arguments.size}.json").write_text(written)
    for failure in failures:
        print(f"too far off: {failure}", file=sys.stderr)
    return 1 if failures else 0


def judge(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is too far off, a sentence each."""
    local = next(row["off"] for row in rows if row["what"] == "local, bfloat16")
    found = []
    for row in rows:
        if not row["off"] < float("inf"):
            found.append(f"{row['what']}: gradients are not finite")
        elif "FP8" in row["what"] and row["loss off"] > FP8_LOSS:
            found.append(f"{row['what']}: the loss is off by {row['loss off']:.1%}")
        elif row["what"].startswith("Transformer Engine, bfloat16") and row["off"] > WORSE_THAN_LOCAL * local:
            found.append(f"{row['what']}: gradients are off by {row['off']:.1e}, those of local layers by {local:.1e}")
    return found


def compare(size: str) -> list[dict[str, Any]]:
    """A row for every variant: its loss, and how far loss and gradients are from the first one's."""
    from megatron_fwpkm.distributed.startup import silence_known_warnings
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    silence_known_warnings()
    rows: list[dict[str, Any]] = []
    expected: tuple[float, dict[str, Tensor]] | None = None
    first = _config(size, [])
    with megatron_run(first.parallel, first.training) as world:
        for name, flags in VARIANTS.items():
            loss, gradients = _step(_config(size, flags), world.device)
            expected = (loss, gradients) if expected is None else expected
            rows.append({
                "what": name,
                "loss": loss,
                "loss off": abs(loss - expected[0]) / abs(expected[0]),
                "off": _distance(gradients, expected[1]),
            })  # fmt: skip
    return rows


def _config(size: str, flags: Sequence[str]) -> PretrainConfig:
    from megatron_fwpkm.config.loading import parse_pretrain

    return parse_pretrain([*SIZES[size], *_SHAPE, *flags]).config


def _step(config: PretrainConfig, device: torch.device) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by the names of checkpoints; of a second pass, for delayed scaling begins without scales."""
    import torch
    from megatron.core.transformer.module import Float16Module

    from megatron_fwpkm.config.derived import embedding_rows
    from megatron_fwpkm.models.builder import build_model, preserve_fast_weights

    assert config.data.vocab_size is not None
    core = build_model(config, embedding_rows(config, config.data.vocab_size)).to(device)
    model = Float16Module(core.config, core) if config.training.bf16 else core
    length = config.model.seq_length
    tokens = torch.randint(0, config.data.vocab_size, (1, length + 1), generator=torch.Generator().manual_seed(1))
    tokens = tokens.to(device)
    positions = torch.arange(length, device=device)[None]
    for _ in range(2):
        model.zero_grad()
        with preserve_fast_weights(model):
            loss = model(tokens[:, :-1], positions, None, labels=tokens[:, 1:]).float().mean()
            loss.backward()
    names = {
        id(weight.data): weight.key
        for weight in core.sharded_state_dict().values()
        if isinstance(getattr(weight, "data", None), torch.Tensor)
    }
    found = {names.get(id(p), name): p.grad.detach().float().cpu() for name, p in core.named_parameters()}
    return loss.item(), found


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients, relative to the norm of all."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    difference = sum((one[name] - other[name]).double().square().sum().item() for name in other)
    return float((difference / sum(tensor.double().square().sum().item() for tensor in other.values())) ** 0.5)


if __name__ == "__main__":
    sys.exit(main())
