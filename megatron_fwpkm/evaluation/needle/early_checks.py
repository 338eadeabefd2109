"""What can be wrong with a command line without looking into a model. Free of torch, so that it is said at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...data.training.needles import NeedleSpec
from ..item_runner import check_run
from .haystack import Haystack, check_haystack_files
from .samples import shortest_context
from .settings import NeedleSettings


def check_places(settings: NeedleSettings, output: Path, workers: int) -> None:
    """Raise ValueError for a model, a haystack or an output folder that cannot be one, and for no process."""
    check_run(settings.model, output, workers)
    check_haystack_files(settings.haystack)


def check_facts(settings: NeedleSettings, spec: NeedleSpec, bos: int | None = None) -> None:
    """Raise ValueError where facts are more than the tokenizer has keys, or do not fit into a context."""
    if spec.number_of_keys() <= settings.needles:
        raise ValueError(
            f"--needles {settings.needles} and one that is never shown are more than the {spec.number_of_keys()} keys "
            "that this tokenizer has; use fewer, or raise --needle-key-words"
        )
    needed = shortest_context(spec, settings.needles, bos)
    for length in settings.lengths:
        if length < needed:
            raise ValueError(
                f"--lengths {length} is too short for --needles {settings.needles}: at least {needed} tokens are needed"
            )


def check_text(settings: NeedleSettings, haystack: Haystack) -> None:
    """Raise ValueError for a text that is shorter than a context."""
    if len(haystack.tokens) < (longest := max(settings.lengths)):
        raise ValueError(
            f"the haystack has {len(haystack.tokens)} tokens, fewer than the longest of --lengths, {longest}: "
            f"add text to --haystack ({', '.join(haystack.sources)}) or leave that length out"
        )


def check_positions(settings: NeedleSettings, spec: NeedleSpec, positions: int | None) -> None:
    """Raise ValueError for a context that with question and answer exceeds the positions a model has learned."""
    if positions is None:
        return
    facts = spec.draw(np.random.default_rng(0), min(64, spec.number_of_keys()))
    asked = max(len(fact.question) + len(fact.answer_tokens) for fact in map(spec.encode_fact, facts))
    if (longest := max(settings.lengths)) + asked > positions:
        raise ValueError(
            f"--lengths {longest} and about {asked} tokens of question and answer are more than the {positions} "
            f"positions that --model {settings.model} has learned; use shorter lengths"
        )
