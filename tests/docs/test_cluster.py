"""The layouts of docs/cluster.md have the figures that --dry-run prints."""

from __future__ import annotations

import re

import pytest

from megatron_fwpkm.config.checkpoint_size import checkpoint_bytes
from megatron_fwpkm.config.derived import data_parallel_size
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.validation import validate
from megatron_fwpkm.training.dry_run import vocabulary_size
from megatron_fwpkm.training.memory_estimate import estimate_memory, format_bytes
from tests.docs.markdown import ROOT, commands

PAGE = ROOT / "docs/cluster.md"
ROWS = re.findall(r"^\| (none|`--[^`]*`) \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
PROCESSES = 16


def the_command() -> list[str]:
    """The arguments of the page's dry run."""
    (found,) = [one.words for one in commands(PAGE) if one.words[-1] == "--dry-run" and "pretrain.py" in one.words]
    assert f"WORLD_SIZE={PROCESSES} python pretrain.py" in PAGE.read_text()
    return list(found[found.index("pretrain.py") + 1 :])


def test_there_are_layouts_to_choose_from():
    assert len(ROWS) == 4


@pytest.mark.parametrize(("layout", "figures"), ROWS)
def test_a_layout(layout: str, figures: str):
    config = parse_pretrain(the_command() + ([] if layout == "none" else layout.strip("`").split())).config
    validate(config, PROCESSES)
    vocabulary, replicas = vocabulary_size(config), data_parallel_size(config, PROCESSES)
    memory = estimate_memory(config, vocabulary, PROCESSES)
    saved = checkpoint_bytes(config, vocabulary, PROCESSES)
    expected = [*(format_bytes(n) for n in (memory.activations, memory.total, saved.total)), str(replicas)]
    assert [figure.strip() for figure in figures.split("|")] == expected
