"""Summaries of answers."""

from __future__ import annotations

import math

import pytest

from megatron_fwpkm.evaluation.confidence import wilson_interval
from megatron_fwpkm.evaluation.needle.recall import Answer, recall


def test_nothing_is_known_without_answers():
    assert math.isnan(recall([]).exact_match)


def test_recall_counts_values_first_tokens_and_tokens():
    answers = [
        Answer("on", 1, (1, 2, 3), given, rank, candidates)
        for given, rank, candidates in (((1, 2, 3), 0, 10), ((1, 9, 3), 0, 10), ((2, 1, 9), 4, 5))
    ]
    summary = recall(answers)
    assert summary.samples == 3
    assert summary.exact_match == pytest.approx(1 / 3)
    assert summary.first_token == pytest.approx(2 / 3)
    assert summary.token_accuracy == pytest.approx(5 / 9)
    assert summary.candidate_accuracy == pytest.approx(2 / 3)
    assert summary.candidate_chance == pytest.approx(0.4 / 3)
    assert (summary.low, summary.high) == wilson_interval(1, 3)
