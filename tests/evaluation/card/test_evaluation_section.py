"""What a card says of results, and whose results it takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_fwpkm.evaluation.card.evaluation_section import add_to_card, evaluation_section, read_evaluation
from megatron_fwpkm.evaluation.domains import run as domains_run
from megatron_fwpkm.evaluation.domains.domain_settings import Domain, DomainSettings
from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.perplexity import run as perplexity_run
from megatron_fwpkm.evaluation.perplexity.perplexity_settings import PerplexitySettings
from tests.evaluation.topic_model import TOPICS, TopicModel, facts, load_topics

FIRST, SECOND, THIRD = TOPICS
LOSS = TopicModel().loss


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Output folders of perplexity and domains, of a scripted model."""
    for module in (perplexity_run, domains_run):
        monkeypatch.setattr(module, "inspect_model", lambda path, device: facts())
    for name, letters in (("a", FIRST), ("b", THIRD)):
        (tmp_path / f"{name}.txt").write_text(letters * 40)
    texts = {name: str(tmp_path / f"{name}.txt") for name in "ab"}
    command = ("python", "tools/evaluate_perplexity.py", "--model", "runs/hf")
    perplexity = PerplexitySettings(str(tmp_path), (texts["a"],), block=32)
    perplexity_run.measure_perplexity(perplexity, RunOptions(tmp_path / "losses", command=command), load_topics)
    domains = DomainSettings(str(tmp_path), tuple(Domain(name, (path,)) for name, path in texts.items()))
    domains_run.measure_domains(domains, RunOptions(tmp_path / "domains"), load_topics)
    return [str(tmp_path / "losses"), str(tmp_path / "domains")]


def needle_results() -> dict[str, Any]:
    place = {"depth": None, "where": "anywhere"}
    rows = [
        {"condition": name, "reads": reads, "length": length, **place, "exact_match": value, "low": value / 2,
         "high": 1.0}
        for name, reads, value in (("memory-on", 1, 0.2), ("memory-on", 2, 0.98), ("memory-off", 1, 0.0))
        for length in (4096, 256)
    ]  # fmt: skip
    rows.append({"condition": "memory-on", "reads": 1, "length": 256, "depth": 0.5, "where": "anywhere"})
    settings = {"needles": 5, "protocol": "streaming", "reads": [1, 2], "length_unit": "words"}
    return {"format": "megatron_fwpkm needle evaluation 1", "settings": settings, "results": rows,
            "causality": {"passed": True}}  # fmt: skip


def test_the_section_says_what_was_measured(measured: list[str], tmp_path: Path) -> None:
    evaluations = [read_evaluation(folder) for folder in measured]
    evaluations.append(replace(evaluations[0], results=needle_results()))
    text = evaluation_section(evaluations)
    known, unknown = LOSS(FIRST, (FIRST,)), LOSS(FIRST, ())
    gap = f"{known - unknown:+.4f}"
    assert f"| off | {unknown:.4f} [{unknown:.4f}, {unknown:.4f}] | {gap} [{gap}, {gap}] |" in text
    assert "On this text the memory lowers the loss." in text
    assert f"| a | {unknown:.4f} | {gap} | {LOSS(FIRST, (FIRST, THIRD)) - unknown:+.4f} |" in text
    assert "python tools/evaluate_perplexity.py --model runs/hf" in text
    assert "| context | memory on, 1 read | memory on, 2 reads | memory off |" in text
    line = "| 256 words | 0.20 [0.10, 1.00] | 0.98 [0.49, 1.00] | 0.00 [0.00, 1.00] |"
    assert text.index(line) < text.index("| 4,096 words |")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.001, 0.002, "**On this text the memory does not help: it raises the loss.**"),
        (-0.001, 0.002, "no effect of the memory on the loss can be told from none"),
        (None, None, "The text is too short to tell"),
    ],
)
def test_the_verdict_is_honest(measured: list[str], low: Any, high: Any, said: str) -> None:
    evaluation = read_evaluation(measured[0])
    for row in evaluation.results["results"]:
        if row["versus"] == "off":
            row.update(low=low, high=high)
    assert said in evaluation_section([evaluation])


def test_a_card_is_of_one_model_and_written_once(measured: list[str], tmp_path: Path) -> None:
    evaluation = read_evaluation(measured[0])
    with pytest.raises(ValueError, match=r"has no README\.md"):
        add_to_card(str(tmp_path), [evaluation], evaluation.weights)
    card = tmp_path / "README.md"
    card.write_text("# Model\n\n## License\n\nThe code.\n")
    with pytest.raises(ValueError, match="measured other weights than those of"):
        add_to_card(str(tmp_path), [evaluation], "0123")
    assert add_to_card(str(tmp_path), [evaluation], evaluation.weights) == card
    once = card.read_text()
    assert once.startswith("# Model\n\n<!-- evaluation: begin -->\n## Evaluation\n")
    assert once.endswith("<!-- evaluation: end -->\n\n## License\n\nThe code.\n")
    add_to_card(str(tmp_path), [evaluation], evaluation.weights)
    assert card.read_text() == once


def test_what_has_no_place_in_a_card(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no results\.json; give the --output of a finished evaluation"):
        read_evaluation(str(tmp_path))
    path = Path(measured[0]) / "results.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"format": "megatron_fwpkm other evaluation 1"}))
    with pytest.raises(ValueError, match="has results of the kind other; a card has needle, perplexity, domains"):
        read_evaluation(measured[0])
    path.write_text(json.dumps(values | {"causality": {"passed": False}}))
    with pytest.raises(ValueError, match="failed its causality check"):
        read_evaluation(measured[0])


def test_results_that_are_damaged_or_of_an_earlier_version_are_refused(measured: list[str]) -> None:
    folder = Path(measured[0])
    path = folder / "results.json"
    older = needle_results()
    for row in older["results"]:
        del row["reads"]
    empty = needle_results() | {"results": []}
    for content in (json.dumps(older), json.dumps(empty), "[]", path.read_text()[:-40], '"', "\xff"):
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match="damaged or of an earlier version .* measure again .* --overwrite"):
            read_evaluation(measured[0])
    (folder / "run.json").unlink()
    with pytest.raises(ValueError, match=r"has no run\.json"):
        read_evaluation(measured[0])
