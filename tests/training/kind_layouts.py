"""One table: kinds of layers against layouts of processes. It makes the tests and the table of docs/scaling.md."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from megatron_fwpkm.config import (
    FwPKMConfig,
    LinearAttentionConfig,
    ModelConfig,
    PretrainConfig,
)
from megatron_fwpkm.config.layer_kinds import kinds_in_use
from megatron_fwpkm.config.memories import memory_kinds
from megatron_fwpkm.config.validation import problems
from tests.docs.markdown import ROOT
from tests.engines.test_engine import change
from tests.training.test_parallel_layouts import EVERYWHERE
from tests.training.trained_layouts import RECOMPUTE, SP, ZERO, Layout

PLAIN = replace(
    EVERYWHERE,
    model=ModelConfig(num_layers=4, hidden_size=16, num_attention_heads=4, seq_length=24),
    linear_attention=LinearAttentionConfig(
        conv_kernel_dim=3, key_head_dim=6, value_head_dim=5, num_key_heads=4, num_value_heads=8
    ),
    fwpkm=FwPKMConfig(layer_numbers=(), num_subkeys=4, key_dim=8, value_dim=8, topk=2, chunk_size=8),
    pkm=replace(EVERYWHERE.pkm, layer_numbers=()),
    fwmlp=replace(EVERYWHERE.fwmlp, layer_numbers=()),
)
"""The model of all rows, in whose layers nothing but attention and MLPs stands."""


@dataclass(frozen=True)
class Row:
    """A kind of layer, or two that take turns: fields of the groups of options that make it."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    fwpkm: dict[str, Any] = field(default_factory=dict)
    pkm: dict[str, Any] = field(default_factory=dict)
    fwmlp: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> set[str]:
        """What it is there for: without the attention that every memory and MLP stands beside."""
        kinds = {kind.name for kind in kinds_in_use(self.config)} - {"swiglu"}
        return kinds - {"fa"} if self.pkm or self.fwpkm.get("layer_numbers") or self.fwmlp else kinds

    @property
    def config(self) -> PretrainConfig:
        """The model in one process."""
        config = PLAIN
        for group in ("model", "fwpkm", "pkm", "fwmlp"):
            config = change(config, group, **getattr(self, group))
        return config


# The draws of --fwpkm-pswa-probability make the first two of the four steps windowed.
NARROWED = {"pswa_probability": 0.3}
ROWS = (
    Row("fa", {"layer_pattern": "fa"}),
    Row("fa, narrowed in training", {"layer_pattern": "fa", "window_size": (6, 0)}, fwpkm=NARROWED),
    Row("swa", {"layer_pattern": "swa:5,swa:9"}),
    Row("gdn", {"layer_pattern": "gdn"}),
    Row("gdn, swa", {"layer_pattern": "gdn,swa:5"}),
    Row("gdn, fa", {"layer_pattern": "gdn,fa"}),
    Row("pkm", pkm={"layer_numbers": (2, 3)}),
    Row("fwpkm", fwpkm={"layer_numbers": (1, 2, 4)}),
    Row("fwmlp", fwmlp={"layer_numbers": (1, 3)}),
    Row(
        "all of them",
        {"layer_pattern": "gdn,swa:5,fa,gdn", "window_size": (6, 0)},
        {"layer_numbers": (1, 4), **NARROWED},
        {"layer_numbers": (2, 4)},
        {"layer_numbers": (3,)},
    ),
)
KINDS = {row.name: row for row in ROWS}

OFFLOAD = {"cpu_offloading_num_layers": 4}
SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ("core_attn", "mlp")}
COLUMNS = (
    Layout("recompute", 1, training=RECOMPUTE),
    Layout("selective recompute", 1, training=SELECTIVE),
    Layout("offload", 1, training=OFFLOAD),
    Layout("TP2", 2, tp=2),
    Layout("TP2 SP", 2, tp=2, more=SP),
    Layout("PP2", 2, pp=2),
    Layout("PP2 interleaved", 2, pp=2, chunks=2),
    Layout("CP2", 2, cp=2),
    Layout("DP2 ZeRO-1", 2, more=ZERO),
    Layout("TP2 SP packed", 2, tp=2, packed=True, more=SP),
    Layout("PP2 packed recompute", 2, pp=2, packed=True, training=RECOMPUTE),
    Layout("CP2 packed", 2, cp=2, packed=True),
    Layout("TP4", 4, tp=4),
    Layout("TP4 SP", 4, tp=4, more=SP),
    Layout("CP4", 4, cp=4),
    Layout("TP2 CP2", 4, tp=2, cp=2),
    Layout("TP2 SP PP2 ZeRO-1", 4, tp=2, pp=2, more={**SP, **ZERO}),
)
LAYOUTS = {layout.name: layout for layout in COLUMNS}
QUICK = "TP2 SP"
"""The column of which every run of the tests has a row; the others are slow."""

GROUPS = {
    "TP": ("TP2", "TP2 SP", "TP4", "TP4 SP"),
    "PP": ("PP2", "PP2 interleaved"),
    "CP": ("CP2", "CP4"),
    "DP": ("DP2 ZeRO-1",),
    "recompute": ("recompute", "selective recompute"),
    "offload": ("offload",),
    "documents apart": ("TP2 SP packed", "PP2 packed recompute", "CP2 packed"),
    "together": ("TP2 CP2", "TP2 SP PP2 ZeRO-1"),
}
"""Columns of the table in the document."""
TOO_MUCH = (
    Layout("TP16", 16, tp=16),
    Layout("CP16", 16, cp=16),
    Layout("offload with full recompute", 1, training={**RECOMPUTE, **OFFLOAD}),
)
"""Refused with a reason, wherever it concerns the kind: sizes that are not divisible, nothing to offload."""
DOCUMENT = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- kinds: begin -->\n", "<!-- kinds: end -->\n"


def refusals(row: Row) -> list[str]:
    """The messages of the start for layouts that the model of a row does not allow."""
    long = change(row.config, "model", seq_length=64)  # which every layout divides
    long = change(long, "data", data_path=("corpus",))
    return [line for layout in TOO_MUCH for line in problems(layout.of(long, "never"), layout.processes)]


def render() -> str:
    """The table, with the reasons of all refusals below it."""
    alone = [row for row in ROWS if len(row.kinds) == 1]
    reasons = list(dict.fromkeys(reason for row in alone for reason in refusals(row)))
    lines = [f"| kind | {' | '.join(GROUPS)} | refused |", f"| --- |{' --- |' * len(GROUPS)} --- |"]
    for row in ROWS:
        cells = [_shown(row, [LAYOUTS[name] for name in names]) for names in GROUPS.values()]
        numbers = ", ".join(str(number) for number, reason in enumerate(reasons, 1) if reason in refusals(row))
        refused = numbers if row in alone else "as its kinds"
        lines.append(f"| {row.name} | {' | '.join(cells)} | {refused} |")
    lines += ["", "Columns:", ""]
    lines += [f"- {group}: {'; '.join(names).replace('packed', 'documents apart')}." for group, names in GROUPS.items()]
    lines += ["", "Refused at the start, with the messages for the model of the tests, which has 4 heads:", ""]
    return "\n".join([*lines, *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]) + "\n"


def _shown(row: Row, layouts: list[Layout]) -> str:
    flags = [memory.fast.prefix + "reset document" for memory in memory_kinds(row.config)]
    if flags and any(layout.replicas > 1 for layout in layouts):
        return f"equal with `{' '.join(flags)}`"
    return "equal"


def with_table(document: str) -> str:
    """A document with the present table between its two marks."""
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n{render()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
