"""The forgetting matrix: known losses of a scripted model, and runs that are stopped, spread or measured twice."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fwpkm.evaluation.domains import run as domains_run
from megatron_fwpkm.evaluation.domains.domain_settings import ADAPTED, MEMORY_OFF, Domain, DomainSettings
from megatron_fwpkm.evaluation.domains.domain_texts import DomainTexts
from megatron_fwpkm.evaluation.domains.forgetting import forgetting_text
from megatron_fwpkm.evaluation.domains.run import measure_domains
from megatron_fwpkm.evaluation.domains.stage_reader import StageReader
from megatron_fwpkm.evaluation.domains.stage_record import StageKey
from megatron_fwpkm.evaluation.item_runner import RunOptions
from megatron_fwpkm.evaluation.text_model import text_model
from tests.evaluation.topic_model import TOPICS, TopicModel, facts, load_topics
from tests.tools.in_process import run_tool

NAMES = ("first", "second", "third")


@pytest.fixture
def settings(tmp_path: Path) -> DomainSettings:
    """Three domains of 200 letters, of which 40 are held out."""
    domains = []
    for name, letters in zip(NAMES, TOPICS, strict=True):
        (tmp_path / f"{name}.txt").write_text((letters * 200)[:200])
        domains.append(Domain(name, (str(tmp_path / f"{name}.txt"),)))
    return DomainSettings(str(tmp_path), tuple(domains), block=16, segment=7)


@pytest.fixture(autouse=True)
def known_facts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "tiny_model" not in request.fixturenames:
        monkeypatch.setattr(domains_run, "inspect_model", lambda path, device: facts())


def expected(orders: dict[int, tuple[int, ...]], on: bool = False) -> dict[tuple[int, int, str], float]:
    """Losses by order, stage and domain: two topics are remembered, and with `on` the one that is measured is."""
    model, letters, found = TopicModel(), tuple(TOPICS), {}
    for order, numbers in orders.items():
        for stage in range(len(NAMES) + 1):
            for number, name in enumerate(NAMES):
                known = [one for one in numbers[:stage][-2:] if not on or one != number] + [number] * on
                topics = tuple(letters[one] for one in known[-2:])
                found[order, stage, name] = model.loss(letters[number], topics)
    return found


@pytest.mark.parametrize("mode", ["frozen", "on"])
def test_the_matrix_of_a_memory_with_room_for_two(settings: DomainSettings, tmp_path: Path, mode: Any) -> None:
    settings = replace(settings, orders=3, read_mode=mode)
    results = measure_domains(settings, RunOptions(tmp_path / "out"), load_topics)
    orders = dict(enumerate(settings.all_orders()))
    assert orders[0] == (0, 1, 2) and len(set(orders.values())) == 3
    losses = expected(orders, on=mode == "on")
    for (order, stage, name), loss in losses.items():
        cell = results.find(name, stage, order=order)
        assert cell.loss.mean == pytest.approx(loss, abs=1e-12) and cell.tokens == 39
        if stage:
            gap = results.find(name, stage, order=order, versus="initial").loss
            assert gap.mean == pytest.approx(loss - losses[order, 0, name], abs=1e-12)
            assert gap.high - gap.low < 1e-9, "all tokens of a domain gain the same here"
    off = results.find("first", 0, condition=MEMORY_OFF).loss.mean
    assert off == pytest.approx(TopicModel().loss("adg", ()), abs=1e-12)
    own = results.find("first", 3, versus="own").loss.mean
    assert own == pytest.approx(losses[0, 3, "first"] - losses[0, 1, "first"], abs=1e-12)
    assert (own > 2) == (mode == "frozen"), "the third domain takes the place of the first"
    with pytest.raises(KeyError, match="no cell for"):
        results.find("third", 3, versus="own")
    assert "first > second > third" in forgetting_text(results)


def test_a_stopped_run_gives_the_same_files(
    settings: DomainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, orders=2)
    monkeypatch.setattr(domains_run, "provenance", lambda command: {"command": "one"})
    measure_domains(settings, RunOptions(tmp_path / "whole"), load_topics)
    lines = (tmp_path / "whole" / "samples.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 2 + 3 * 2
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samples.jsonl").write_text("".join(lines[:6]) + lines[6][:20])
    run, seen = StageReader.run, []
    monkeypatch.setattr(StageReader, "run", lambda reader, key: seen.append(key) or run(reader, key))
    measure_domains(settings, RunOptions(tmp_path / "out"), load_topics)
    assert seen == [StageKey(1, 2, ADAPTED), StageKey(0, 3, ADAPTED), StageKey(1, 3, ADAPTED)]
    for name in ("results.json", "results.csv", "forgetting.png", "report.html", "samples.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [float(row["loss"]) for row in rows] == [value["loss"] for value in values["results"]]
    assert values["causality"]["passed"] and values["adapt_tokens"] == dict.fromkeys(NAMES, 160)
    assert (tmp_path / "out" / "forgetting.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="different: held_out"):
        measure_domains(replace(settings, held_out=0.5), RunOptions(tmp_path / "out"), load_topics)


def test_measuring_leaves_no_trace(tiny_model: Any) -> None:
    """With a real memory: a stage that is reached without measuring on the way, or in other pieces, is the same."""
    model = text_model(type(tiny_model)(tiny_model.config).double().eval())
    draw = np.random.default_rng(0).integers
    texts = [DomainTexts(name, (draw(0, 400, 150),), (draw(0, 400, 70), draw(0, 400, 9))) for name in "ab"]
    settings = DomainSettings("unused", (Domain("a", ("a",)), Domain("b", ("b",))), block=32, read_mode="on")
    last, reader = StageKey(0, 2, ADAPTED), StageReader(settings, texts, model)
    alone = reader.run(last)
    again = reader.run(StageKey(0, 1, ADAPTED)), reader.run(last)
    assert again[1] == alone and again[0].domains != alone.domains
    pieces = StageReader(replace(settings, segment=13), texts, model).run(last)
    for one, other in zip(alone.domains, pieces.domains, strict=True):
        assert [x.sums for x in one] == [pytest.approx(x.sums, abs=1e-9) for x in other]
    frozen = StageReader(replace(settings, read_mode="frozen"), texts, model).run(last)
    twice = StageReader(replace(settings, adapt_reads=2), texts, model).run(last)
    assert len({record.domains for record in (alone, frozen, twice)}) == 3
    cache = model.new_cache()
    with torch.inference_mode():
        for text in texts:
            model.read(text.adapt[0], cache)
            cache.end_text()
        logits = model.read(texts[0].held_out[0], cache, "frozen", last_only=False)
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(texts[0].held_out[0][1:]), reduction="sum")
    assert sum(frozen.domains[0][0].sums) == pytest.approx(float(losses), abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"domains": (Domain("a", ("a",)),)}, "--domain needs two domains or more"),
        ({"domains": (Domain("a", ("a",)), Domain("a", ("b",)))}, "--domain names a, a: a name is used twice"),
        ({"held_out": 1.0}, "--held-out 1.0 must be between 0 and 1"),
        ({"adapt_tokens": 1}, "--adapt-tokens 1 must be at least 2"),
        ({"adapt_reads": 0}, "--adapt-reads 0 must be at least 1"),
        ({"orders": 7}, "--orders 7: 3 domains have only 6 different orders"),
        ({"read_mode": "off"}, "--read-mode 'off' is not known; choose from frozen, on"),
    ],
)
def test_what_cannot_be_asked(settings: DomainSettings, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(settings, **changes)


def test_what_is_refused_before_weights_are_loaded(
    settings: DomainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(**changes: Any) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (asserted by the caller)
            measure_domains(replace(settings, **changes), RunOptions(tmp_path / "out"), pytest.fail)
        return str(caught.value)

    with pytest.raises(ValueError, match="--domain 'a' is not NAME=FILE"):
        Domain.parse("a")
    assert Domain.parse("a=b,c") == Domain("a", ("b", "c"))
    assert "too little text for --held-out 0.001" in said(held_out=0.001)
    assert "--domain missing.txt does not exist" in said(domains=(settings.domains[0], Domain("b", ("missing.txt",))))
    monkeypatch.setattr(domains_run, "inspect_model", lambda path, device: facts(has_memory=False))
    assert "has no fast-weight memory: reading changes none of its weights" in said()


def test_texts_are_cut_over_several_files(settings: DomainSettings, tmp_path: Path) -> None:
    both = Domain("both", (settings.domains[0].files[0], settings.domains[1].files[0]))
    settings = replace(settings, domains=(both, settings.domains[2]), adapt_tokens=200, held_out_tokens=50)
    texts = domains_run.load_domains(settings, facts().tokenizer, 7)
    assert [len(one) for one in texts[0].adapt] == [161, 41] and texts[0].adapt_tokens == 202
    assert [len(one) for one in texts[0].held_out] == [41, 11] and texts[0].held_out[1][0] == 7
    assert [len(one) for one in texts[1].adapt] == [161]


def test_many_domains_have_orders_that_differ() -> None:
    many = tuple(Domain(str(number), (str(number),)) for number in range(9))
    orders = DomainSettings("unused", many, orders=5).all_orders()
    assert len(set(orders)) == 5 and all(sorted(order) == list(range(9)) for order in orders)


@pytest.mark.slow
def test_the_tool(tiny_model: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An export, two processes, and the table on the terminal."""
    tiny_model.save_pretrained(tmp_path / "export")
    shutil.copy(folder / "tokenizer.model", tmp_path / "export")
    done = run_tool(
        capsys, "evaluate_domains", "--model", tmp_path / "export", "--domain", f"one={folder / 'novel.txt'}",
        f"two={folder / 'novel.txt'}", "--adapt-tokens", 200, "--held-out-tokens", 100, "--block", 32, "--orders", 2,
        "--workers", 2, "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "two > one" in done.stdout
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert {"forgetting.png", "report.html", "results.csv", "results.json", "samples.jsonl"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
