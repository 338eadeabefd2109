"""Checks of the command line that need no model. Free of torch, so that errors appear at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...data.training.needles import NeedleSpec
from ..item_runner import check_run
from ..text_files import check_text_files
from .haystack import FLAG, Haystack
from .samples import shortest_context
from .settings import NeedleSettings


def check_places(settings: NeedleSettings, output: Path, workers: int) -> None:
    """Raise ValueError for an invalid model folder, haystack, output folder or number of processes."""
    check_run(settings.model, output, workers)
    check_text_files(FLAG, settings.haystack)


def check_facts(settings: NeedleSettings, spec: NeedleSpec, bos: int | None = None) -> None:
    """Raise ValueError if the tokenizer has too few keys for the facts, or if the facts do not fit into a context."""
    if spec.number_of_keys() <= settings.needles:
        raise ValueError(
            f"--needles {settings.needles} and the fact of the never-shown control need {settings.needles + 1} "
            f"different keys, but this tokenizer has only {spec.number_of_keys()}; use fewer needles, or increase "
            "--needle-key-words"
        )
    needed = shortest_context(spec, settings.needles, bos)
    for length in settings.lengths:
        if length < needed:
            raise ValueError(
                f"--lengths {length} is too short for --needles {settings.needles}: at least {needed} tokens are needed"
            )


def check_text(settings: NeedleSettings, haystack: Haystack) -> None:
    """Raise ValueError if the text is shorter than a context."""
    if len(haystack.tokens) < (longest := max(settings.lengths)):
        raise ValueError(
            f"the haystack has only {len(haystack.tokens)} tokens, but the longest of --lengths is {longest}: add text "
            f"to --haystack ({', '.join(haystack.sources)}), or remove that length"
        )


def check_positions(settings: NeedleSettings, spec: NeedleSpec, positions: int | None) -> None:
    """Raise ValueError if a context with question and answer exceeds the learned position embeddings of the model."""
    if positions is None:
        return
    facts = spec.draw(np.random.default_rng(0), min(64, spec.number_of_keys()))
    asked = max(len(fact.question) + len(fact.answer_tokens) for fact in map(spec.encode_fact, facts))
    if (longest := max(settings.lengths)) + asked > positions:
        raise ValueError(
            f"--lengths {longest} plus about {asked} tokens of question and answer exceed the {positions} learned "
            f"position embeddings of --model {settings.model}; use shorter lengths"
        )
