"""The samples of RULER's tasks: equal to those of NVIDIA's generator, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from megatron_fwpkm.evaluation.ruler.ruler_tasks import RULER_TASKS
from megatron_fwpkm.evaluation.ruler.sample_stream import RulerSources, ruler_samples
from megatron_fwpkm.evaluation.ruler.word_lists import KeyWords, key_words, wonderwords_list
from tests.conftest import ROOT
from tests.evaluation.ruler.ruler_data import quarter_bytes, ruler_data, ruler_sources

SAMPLES = 3
CHECKOUT = os.environ.get("RULER_REPOSITORY")
GOLDEN: dict[tuple[str, int, int], str] = {
    ("niah_single_1", 2048, 7): "d2bb8d82bd1f1a27",
    ("niah_single_2", 2048, 7): "140d3273200a796e",
    ("niah_single_3", 2048, 7): "08bf7166ffc7a945",
    ("niah_multikey_1", 2048, 7): "781e5681961f8c19",
    ("niah_multikey_2", 2048, 7): "c0877355ae9f13e4",
    ("niah_multikey_3", 2048, 7): "c57b41db0f70706f",
    ("niah_multivalue", 2048, 7): "339b07229dd7652b",
    ("niah_multiquery", 2048, 7): "1345d807d3feb55b",
    ("vt", 2048, 7): "457ccde2e1ce68af",
    ("cwe", 2048, 7): "132450a1bbb31d3a",
    ("fwe", 2048, 7): "0e01c42c72833180",
    ("qa_1", 2048, 7): "d649eca5817c1448",
    ("qa_2", 2048, 7): "d04aaf3040529570",
    ("niah_single_1", 4096, 42): "246ce520a356f30f",
    ("niah_single_2", 4096, 42): "e34916f7909aac44",
    ("niah_single_3", 4096, 42): "9a277383435d190a",
    ("niah_multikey_1", 4096, 42): "4e9080b3f9a9fe3d",
    ("niah_multikey_2", 4096, 42): "d2c211744d9adb8c",
    ("niah_multikey_3", 4096, 42): "08614b7d73f2d63f",
    ("niah_multivalue", 4096, 42): "e580406bea8ac713",
    ("niah_multiquery", 4096, 42): "2335bc0a2d7c58df",
}
"""Digests of samples that were equal to NVIDIA's, by task, length and seed (`test_samples_are_those_of_nvidia`)."""


@pytest.fixture(scope="module")
def sources() -> RulerSources:
    return ruler_sources(ruler_data())


def ours(name: str, length: int, seed: int, sources: RulerSources) -> list[list[Any]]:
    """Our samples, as plain values."""
    stream = itertools.islice(ruler_samples(name, length, seed, quarter_bytes, sources), SAMPLES)
    return [[sample.text, sample.prefix, list(sample.answers), tokens] for sample, tokens in stream]


def digest(samples: list[list[Any]]) -> str:
    return hashlib.blake2b(json.dumps(samples).encode(), digest_size=8).hexdigest()


@pytest.mark.parametrize(("name", "length", "seed"), GOLDEN)
def test_samples_stay_as_they_were_compared(name, length, seed, sources):
    samples = ours(name, length, seed, sources)
    assert digest(samples) == GOLDEN[name, length, seed]
    assert all(0.4 * length < tokens <= length for *_, tokens in samples)


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="RULER_REPOSITORY names no checkout of NVIDIA/RULER")
@pytest.mark.parametrize(("length", "seed"), [(2048, 7), (4096, 42)])
@pytest.mark.parametrize("name", RULER_TASKS)
def test_samples_are_those_of_nvidia(name, length, seed, sources, tmp_path):
    words = [CHECKOUT, name, str(length), str(seed), str(SAMPLES), str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "tests.evaluation.ruler.nvidia_generator", *words], cwd=ROOT, check=True, timeout=250
    )
    lines = (tmp_path / name / "validation.jsonl").read_text().splitlines()
    names = ("input", "answer_prefix", "outputs", "length")
    theirs = [[line[part] for part in names] for line in map(json.loads, lines)]
    found = ours(name, length, seed, sources)
    assert found == theirs
    assert GOLDEN[name, length, seed] == digest(theirs)


def test_pairs_are_those_of_a_sorted_list():
    firsts, nouns = ["old", "blue", "old-fashioned", "Early", "blue", "ad hoc"], ["zebra", "cat", "fox", "cat"]
    expected = sorted({f"{first}-{noun}" for first in firsts for noun in nouns})
    pairs = KeyWords(firsts, nouns)
    assert [pairs[place] for place in range(len(pairs))] == expected
    assert len(key_words()) == len(set(wonderwords_list("adjective"))) * len(set(wonderwords_list("noun")))


@pytest.mark.slow
def test_all_keys_are_those_of_a_sorted_list():
    everything = {f"{first}-{noun}" for first in wonderwords_list("adjective") for noun in wonderwords_list("noun")}
    found, expected = key_words(), sorted(everything)
    assert len(found) == len(expected)
    assert all(found[place] == expected[place] for place in [*range(0, len(expected), 997), len(expected) - 1])


@pytest.mark.parametrize("name", sorted({*RULER_TASKS} - {"fwe"}))  # which has a text of any length
def test_a_length_without_room_is_refused(name, sources):
    with pytest.raises(ValueError, match=f"--tasks {name} does not fit into --lengths 256 .*smallest sample"):
        ours(name, 256, 42, sources)
