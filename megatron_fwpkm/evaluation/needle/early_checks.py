"""Checks of the command line that need no model. Free of torch, so that errors appear at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..item_runner import check_run
from ..text_files import check_text_files
from .fact_kinds import FactKind, draw_distractors
from .haystack import FLAG, Haystack
from .samples import shortest_context
from .settings import NeedleSettings


def check_places(settings: NeedleSettings, output: Path, workers: int, ranks: int = 1) -> None:
    """Raise ValueError for an invalid model folder, haystack, output folder or number of processes, `ranks` of which
    torchrun has started.
    """
    check_run(settings.model, output, workers)
    several = f"--workers {workers}" if workers > 1 else f"torchrun with {ranks} processes"
    if workers * ranks > 1 and settings.batch_size > 1:
        raise ValueError(f"{several} and --batch-size {settings.batch_size}: one process reads a batch; use one")
    if workers * ranks > 1 and settings.carries_memory:
        raise ValueError(
            f"{several} and --memory-reset {settings.memory_reset}: every context goes on from the memory of the one "
            "before, so one process measures all of them; start only one"
        )
    check_text_files(FLAG, settings.haystack)


def check_facts(settings: NeedleSettings, kind: FactKind, bos: int | None = None) -> None:
    """Raise ValueError if the tokenizer has too few keys for the facts, or if the facts do not fit into a context."""
    if kind.number_of_keys() <= settings.needles:
        raise ValueError(
            f"--needles {settings.needles} and the fact of the never-shown control need {settings.needles + 1} "
            f"different keys, but this tokenizer has only {kind.number_of_keys()}; use fewer needles, or increase "
            "--needle-key-words"
        )
    rng = np.random.default_rng(0)
    draw_distractors(kind, rng, kind.draw(rng, settings.needles + 1), settings.distractors, settings.distractor_kind)
    if settings.length_unit == "words":
        return
    facts = settings.needles + settings.distractors
    more = f" and --distractors {settings.distractors}" if settings.distractors else ""
    needed = shortest_context(kind, facts, bos)
    for length in settings.lengths:
        if length < needed:
            raise ValueError(
                f"--lengths {length} is too short for --needles {settings.needles}{more}: at least {needed} tokens are "
                "needed"
            )


def check_text(settings: NeedleSettings, haystack: Haystack) -> None:
    """Raise ValueError if the text, or one of its files where a context comes from one, is shorter than a context."""
    longest = max(settings.lengths)
    for file in range(len(settings.haystack)) if settings.memory_reset == "file" else [None]:
        begin, end = haystack.ends(file)
        if end - begin < longest:
            raise ValueError(haystack.too_short(longest, file))


def check_positions(settings: NeedleSettings, kind: FactKind, positions: int | None) -> None:
    """Raise ValueError if a context with question and answer exceeds the learned position embeddings of the model."""
    if positions is None:
        return
    if settings.length_unit == "words":
        raise ValueError(
            f"--model {settings.model} has {positions} learned position embeddings, which --length-unit words cannot "
            "keep to; give --lengths in tokens"
        )
    drawn = kind.draw(np.random.default_rng(0), min(64, kind.number_of_keys()))
    asked = max(len(fact.question) + len(fact.answer_tokens) for fact in map(kind.encode_fact, drawn))
    if (longest := max(settings.lengths)) + asked > positions:
        raise ValueError(
            f"--lengths {longest} plus about {asked} tokens of question and answer exceed the {positions} learned "
            f"position embeddings of --model {settings.model}; use shorter lengths"
        )
