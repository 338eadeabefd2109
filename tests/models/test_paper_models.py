"""The paper's models in examples/paper: each whole one has its sizes, each tiny one trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from megatron_fwpkm.config import PretrainConfig
from megatron_fwpkm.config.derived import embedding_rows, table_elements
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.parameter_counts import num_parameters
from megatron_fwpkm.config.validation import problems
from tests.docs.markdown import ROOT
from tests.quick_cases import product_cases
from tests.spawned_ranks import run_distributed

PAPER = ROOT / "examples" / "paper"
VOCABULARY = 200
LAYOUTS = sorted(path.stem for path in (PAPER / "layouts").iterdir())
PARTS = sorted(str(p.relative_to(PAPER)) for folder in ("memories", "ablations") for p in (PAPER / folder).iterdir())
# In every run of the tests; the others with --slow.
QUICK = ("memories/pkm_fwpkm.yaml",)


def configuration(*files: str, more: tuple[str, ...] = ()) -> PretrainConfig:
    """What the base and some files after it say."""
    names = [word for file in ("base_112m.yaml", *files) for word in ("--config", str(PAPER / file))]
    return parse_pretrain([*names, *more]).config


def tiny(layout: str, *files: str, more: tuple[str, ...] = ()) -> PretrainConfig:
    more = (*more, "--vocab-size", str(VOCABULARY))
    return configuration(f"layouts/{layout}.yaml", *files, "tiny.yaml", more=more)


def batches(config: PretrainConfig) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-batches of random tokens."""
    length, generator = config.model.seq_length, torch.Generator().manual_seed(0)
    while True:
        tokens = torch.randint(0, VOCABULARY, (1, length + 1), generator=generator)
        yield {
            "tokens": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "loss_mask": torch.ones(1, length),
            "position_ids": torch.arange(length)[None],
            "document_starts": torch.zeros(1, length, dtype=torch.bool),
        }


def losses(config: PretrainConfig) -> list[float]:
    """Of two steps, in the running processes, and of an evaluation."""
    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    with megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, embedding_rows(config, VOCABULARY), world.device)
        source = batches(config)
        steps = [engine.train_step(source).losses.loss for _ in range(2)]
        evaluated = engine.evaluate(source, 1)
        assert evaluated is not None
        return [*steps, evaluated.loss]


# A third of the layers: one period of every pattern, with one memory.
SHORT = ("--num-layers", "4", "--fwpkm-layer-numbers", "3")


def on_two_ranks(rank: int, world_size: int, layouts: list[str]) -> list[list[float]]:
    """All layouts, one after the other."""
    more = (*SHORT, "--tensor-model-parallel-size", str(world_size), "--sequence-parallel")
    return [losses(tiny(layout, more=more)) for layout in layouts]


@pytest.mark.parametrize(
    ("part", "layout"),
    product_cases(
        [None, *PARTS],
        LAYOUTS,
        quick=lambda part, layout: part is None or PARTS.index(part) % len(LAYOUTS) == LAYOUTS.index(layout),
    ),
)
def test_the_whole_models_can_be_run(layout: str, part: str | None) -> None:
    files = [f"layouts/{layout}.yaml", *([part] if part else [])]
    config = configuration(*files, more=("--dry-run",))
    assert problems(config, 8) == [] and config.model.num_layers == 12
    small = configuration(*files, "tiny.yaml", more=("--dry-run",))
    assert problems(small, 1) == [] and num_parameters(small, VOCABULARY) < 200_000
    if part is not None:  # every file changes something
        assert configuration(files[0]) != configuration(*files)


def test_sizes_of_the_layouts() -> None:
    plain = {name: configuration(f"layouts/{name}.yaml", "memories/none.yaml") for name in LAYOUTS}
    counts = {name: num_parameters(config, 32_000) for name, config in plain.items()}
    attention = 768 * (2 * 768 + 2 * 256) + 768 * 768 + 2 * 64 + 768
    expected = 12 * (attention + 3 * 768 * 2304 + 768) + 32_000 * 768 + 768
    assert counts["fa"] == counts["swa"] == expected
    whole = configuration("layouts/gdn.yaml")
    total = num_parameters(whole, 32_000) + 3 * table_elements(whole)
    assert [round(count / 1e6) for count in (counts["gdn"], total)] == [112, 519]  # as the paper says
    said = (PAPER / "README.md").read_text()
    assert f"{counts['gdn']:,} slow weights without a memory; with three, {num_parameters(whole, 32_000):,}" in said
    assert f"slow and {3 * table_elements(whole):,} fast weights" in said


def test_all_files_are_in_the_table() -> None:
    said = (PAPER / "README.md").read_text()
    files = [str(path.relative_to(PAPER)) for path in PAPER.rglob("*.yaml")]
    assert [name for name in files if f"`{name}`" not in said] == []


@pytest.mark.slow  # tests/training/test_kind_layouts.py compares smaller models of all layouts in every run
@pytest.mark.layouts
def test_every_layout_trains_on_one_and_on_two_ranks() -> None:
    alone = [losses(tiny(layout, more=SHORT)) for layout in LAYOUTS]
    for ranks in zip(*run_distributed(on_two_ranks, 2, LAYOUTS, timeout=200), alone, strict=True):
        for found in ranks[:2]:
            assert found == pytest.approx(ranks[2], rel=1e-3)


@cache
def of_the_base() -> list[float]:
    """The losses with none of the parts."""
    return losses(tiny("swa"))


@pytest.mark.parametrize("part", [pytest.param(p, marks=() if p in QUICK else pytest.mark.slow) for p in PARTS])
def test_every_part_trains(part: str) -> None:
    found = losses(tiny("swa", part))
    assert all(map(math.isfinite, found)) and found != of_the_base()
