"""The table of combinations in docs/engines.md is fresh, its refusals are those of the start, and what works runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from megatron_fwpkm.config import combinations
from megatron_fwpkm.config.combinations import Combination, cells
from megatron_fwpkm.config.derived import replica_size
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.training.dry_run import dry_run
from tests.spawned_ranks import run_distributed

CELLS = list(cells())
REFUSED = [cell for cell in CELLS if cell.reasons]
ELSEWHERE = ("transformer_engine", "fusion on", "deepspeed")
"""Needs CUDA, or has tests of its own."""
HERE = [cell for cell in CELLS if not cell.reasons and not any(word in " ".join(cell.words) for word in ELSEWHERE)]


def named(cell: Combination) -> str:
    return f"{cell.row or 'default'} | {cell.column}"


def test_the_table_is_fresh():
    written = combinations.OUTPUT.read_text(encoding="utf-8")
    assert written == combinations.with_table(written), "docs/engines.md is stale: run `make docs` and commit it"


@pytest.mark.slow
def test_check_tells_a_stale_table(tmp_path, monkeypatch):
    written = combinations.OUTPUT.read_text(encoding="utf-8")
    monkeypatch.setattr(combinations, "OUTPUT", tmp_path / "engines.md")
    combinations.OUTPUT.write_text(written.replace("| works | works |", "| works | refused: 1 |", 1))
    with pytest.raises(ValueError, match=r"the table of .*engines.md is stale: run `make docs`"):
        combinations.main(["--check"])
    assert combinations.main([]) == 0 and combinations.main(["--check"]) == 0
    assert combinations.OUTPUT.read_text(encoding="utf-8") == written


def test_both_verdicts_are_in_the_table():
    assert len(CELLS) == len(combinations.ROWS) * len(combinations.COLUMNS)
    assert len(REFUSED) > 20 and len(HERE) > 10


@pytest.mark.parametrize("cell", REFUSED, ids=named)
def test_a_refused_cell_is_refused_at_the_start_for_its_reasons(cell, monkeypatch):
    resolved = parse_pretrain([*cell.words, "--dry-run"])
    monkeypatch.setenv("WORLD_SIZE", str(2 * replica_size(resolved.config)))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError) as caught:
        dry_run(resolved)
    lines = [line.removeprefix("  - ") for line in str(caught.value).splitlines()]
    assert (lines if len(cell.reasons) == 1 else lines[1:]) == cell.reasons


def one_step(rank: int, world_size: int, words: list[str]) -> float:
    """Loss of one training step."""
    import torch

    from megatron_fwpkm.engines.megatron import MegatronEngine
    from megatron_fwpkm.engines.megatron_groups import megatron_run

    config = parse_pretrain(words).config
    config = replace(config, training=replace(config.training, num_threads=1))
    length = config.model.seq_length
    with megatron_run(config.parallel, config.training) as world:
        engine = MegatronEngine(config, 96, world.device)
        tokens = torch.randint(0, 95, (1, length + 1), generator=torch.Generator().manual_seed(0))
        batch = {
            "tokens": tokens[:, :-1], "labels": tokens[:, 1:], "loss_mask": torch.ones(1, length),
            "position_ids": torch.arange(length)[None], "document_starts": torch.arange(length)[None] == 0,
        }  # fmt: skip
        return engine.train_step(iter([batch] * 8)).losses.loss


def ranks_of(cell: Combination) -> int:
    """How many processes the smallest run of a cell has."""
    return replica_size(parse_pretrain(cell.words).config)


def assert_runs(cell: Combination) -> None:
    check_losses(run_distributed(one_step, ranks_of(cell), cell.words, timeout=300))


def check_losses(losses: list[float]) -> None:
    """Those of a model that knows nothing yet."""
    assert all(math.isfinite(loss) for loss in losses) and losses[0] == pytest.approx(math.log(96), rel=0.05)


@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.parametrize("cell", [cell for cell in HERE if ranks_of(cell) == 1][:1], ids=named)
def test_a_cell_that_works_runs(cell):
    """On one rank, which this process is."""
    check_losses([one_step(0, 1, cell.words)])


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_compat")
@pytest.mark.parametrize("cell", HERE, ids=named)
def test_every_cell_that_works_here_runs(cell):
    assert_runs(cell)
