"""The figures of docs/scaling.md are those that --dry-run prints and that tests/layers/test_collectives.py counts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from megatron_fwpkm.config.derived import replica_size
from megatron_fwpkm.config.loading import parse_pretrain
from megatron_fwpkm.config.undo_log_bytes import undo_log_bytes
from megatron_fwpkm.config.validation import validate
from megatron_fwpkm.training.dry_run import vocabulary_size
from megatron_fwpkm.training.memory_estimate import estimate_memory, format_bytes
from tests.docs.markdown import ROOT

TEXT = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
LONG = ["--config", str(ROOT / "examples" / "paper" / "base_112m.yaml")]
LONG += "--seq-length 131072 --micro-batch-size 1 --global-batch-size 8".split()
ROWS = re.findall(r"^\| (\d+) \| (none|`--[^`]*`) \| (\d+) \|(.*)\|$", TEXT, re.MULTILINE)


def test_the_command_is_that_of_the_rows():
    assert " ".join(LONG[2:]) in TEXT and len(ROWS) == 8 and {row[0] for row in ROWS} == {"1", "8", "64"}


@pytest.mark.parametrize(("gpus", "layout", "tokens", "figures"), ROWS)
def test_128k_tokens(gpus: str, layout: str, tokens: str, figures: str):
    config = parse_pretrain([*LONG, "--dry-run"] + ([] if layout == "none" else layout.strip("`").split())).config
    validate(config, int(gpus))
    assert int(gpus) % replica_size(config) == 0
    assert int(tokens) == config.model.seq_length // config.parallel.context_parallel_size
    found = estimate_memory(config, vocabulary_size(config), int(gpus))
    expected = [format_bytes(n) for n in (found.tables, found.undo_log, found.activations, found.total)]
    assert [figure.strip() for figure in figures.split("|")] == expected
    if found.offloaded:
        assert f"({format_bytes(found.offloaded)} in host memory)" in TEXT


def test_numbers_per_token_of_the_base_model():
    """The rows of the table for one token; `tests/layers/test_collectives.py` counts the same sums."""
    fwpkm = parse_pretrain(LONG).config.fwpkm
    hidden, reads = parse_pretrain(LONG).config.model.hidden_size, fwpkm.num_heads * fwpkm.topk
    queries, proposals = fwpkm.num_heads * fwpkm.key_dim, 4 * reads
    forward, addressing = 1 + 3 + hidden, 2 * reads + queries
    backward = reads + 1 + 3 + 1 + hidden + addressing
    text = TEXT.replace("\n", " ")
    assert f"sends per token {forward} + {proposals} TP numbers forward and {backward} backward" in text
    assert f"2 D / CP + Q + 2 + {proposals} CP forward and 2 D / CP + {reads + 1 + addressing} backward" in text
    assert f"({proposals} S numbers per token" in text and 16 * proposals < forward < 64 * proposals / 2
    kept = (5 * queries + 64 * reads) * 131072
    assert f"({format_bytes(kept)} at" in text


def test_copies_of_moving_sub_keys():
    config = parse_pretrain(LONG).config
    still = replace(config, fwpkm=replace(config.fwpkm, addressing_weight=0.0))
    copies = undo_log_bytes(config) - undo_log_bytes(still)
    assert f"with the undo log: {format_bytes(copies)} / S\n" in TEXT
