"""Writes the table of docs/engines.md that says which options run together, from the rules that check a configuration.

`python -m megatron_fwpkm.config.combinations` writes the table; with --check it only says whether it is up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .cli import run_cli
from .derived import replica_size
from .loading import parse_pretrain
from .megatron_releases import supported_megatron
from .validation import problems

OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "engines.md"

BASE = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --tokenizer-type NullTokenizer "
    "--vocab-size 95 --data-path corpus --eval-iters 0 --fwpkm-layer-numbers 2 --fwpkm-num-subkeys 16 "
    "--fwpkm-key-dim 32 --fwpkm-value-dim 64 --fwpkm-topk 4 --fwpkm-chunk-size 16"
)
"""The model of all cells: its sizes fit every layout, so that only what excludes each other is refused."""
_ENGINE = "--transformer-impl transformer_engine"
COLUMNS = {
    "local, float32": "--transformer-impl local",
    "local, bfloat16": "--transformer-impl local --bf16",
    "Transformer Engine, float32": _ENGINE,
    "Transformer Engine, bfloat16": f"{_ENGINE} --bf16",
    "Transformer Engine, FP8": f"{_ENGINE} --bf16 --fp8-format hybrid",
}
"""Implementation of the layers and data type, with the flags of each."""
ROWS = (
    "",
    "--tensor-model-parallel-size 2",
    "--tensor-model-parallel-size 2 --sequence-parallel",
    "--pipeline-model-parallel-size 2",
    "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --global-batch-size 4",
    "--context-parallel-size 2",
    "--context-parallel-size 2 --attention-backend te",
    "--use-distributed-optimizer",
    "--grad-reduce-in-bf16",
    "--gradient-accumulation-fusion on",
    "--gradient-accumulation-fusion on --cpu-offloading-num-layers 1 --overlap-grad-reduce",
    "--attention-backend te",
    "--attention-backend te --reset-attention-mask",
    "--attention-backend te --context-parallel-size 2 --layer-pattern swa:16",
    "--rope-fusion",
    "--rope-fusion --reset-position-ids",
    "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    "--cpu-offloading-num-layers 1",
    "--engine deepspeed --zero-stage 0",
    "--engine deepspeed --zero-stage 1",
    "--engine deepspeed --zero-stage 2 --tensor-model-parallel-size 2 --sequence-parallel",
    "--engine deepspeed --zero-stage 3",
    "--engine deepspeed --context-parallel-size 2",
    "--engine deepspeed --pipeline-model-parallel-size 2",
    "--engine deepspeed --use-distributed-optimizer",
    "--engine deepspeed --calculate-per-token-loss",
    "--engine deepspeed --gradient-accumulation-fusion on",
)
"""Engines, layouts and options of libraries."""
_BEGIN, _END = "<!-- combinations: begin -->\n", "<!-- combinations: end -->\n"


class Combination(NamedTuple):
    """One combination: its row and column, the words of its command line and why it is refused (empty: it works)."""

    row: str
    column: str
    words: list[str]
    reasons: list[str]


def cells() -> Iterator[Combination]:
    """All combinations, row by row."""
    for row in ROWS:
        for column, flags in COLUMNS.items():
            words = f"{BASE} {flags} {row}".split()
            config = parse_pretrain(words).config
            yield Combination(row, column, words, problems(config, 2 * replica_size(config)))


def render() -> str:
    """The table, with the reasons of all refusals below it."""
    found = list(cells())
    reasons = list(dict.fromkeys(reason for cell in found for reason in cell.reasons))
    lines = [f"With megatron-core {supported_megatron()} alike: no rule depends on the release.", ""]
    lines += [f"| | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
    for row in ROWS:
        shown = [_shown(cell, reasons) for cell in found if cell.row == row]
        lines.append(f"| {f'`{row}`' if row else 'one process, or replicas'} | {' | '.join(shown)} |")
    lines += ["", "Refused, with the message of the start:", ""]
    lines += [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def _shown(cell: Combination, reasons: Sequence[str]) -> str:
    if not cell.reasons:
        return "works"
    return "refused: " + ", ".join(str(reasons.index(reason) + 1) for reason in cell.reasons)


def with_table(document: str) -> str:
    """A document with the present table between its two marks."""
    before, rest = document.split(_BEGIN)
    return f"{before}{_BEGIN}\n{render()}\n{_END}{rest.split(_END)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table into the document, or check it. Raises ValueError when the check finds it stale."""
    parser = argparse.ArgumentParser(prog="python -m megatron_fwpkm.config.combinations", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the table is stale")
    arguments = parser.parse_args(argv)
    written = OUTPUT.read_text(encoding="utf-8")
    if arguments.check:
        if written != with_table(written):
            raise ValueError(f"the table of {OUTPUT} is stale: run `make docs` and commit it")
        return 0
    OUTPUT.write_text(with_table(written), encoding="utf-8")
    print(f"wrote the table of {OUTPUT}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
