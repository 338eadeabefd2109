"""What can be wrong with a command line without looking into a model. Free of torch, so that it is said at once."""

from __future__ import annotations

import os
from pathlib import Path

from ...data.training.needles import NeedleSpec
from .haystack import Haystack, check_haystack_files
from .samples import shortest_context
from .settings import NeedleSettings


def check_places(settings: NeedleSettings, output: Path, workers: int) -> None:
    """Raise ValueError for a model, a haystack or an output folder that cannot be one, and for no process."""
    if workers < 1:
        raise ValueError(f"--workers {workers} must be at least 1")
    if not Path(settings.model).is_dir():
        raise ValueError(f"--model {settings.model} is not a folder; give an export or a checkpoint")
    check_haystack_files(settings.haystack)
    place = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"--output {output} cannot be a folder: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--output {output} cannot be written: {place} does not allow it")


def check_facts(settings: NeedleSettings, spec: NeedleSpec, bos: int | None = None) -> None:
    """Raise ValueError where facts are more than the tokenizer has keys, or do not fit into a context."""
    if spec.number_of_keys() <= settings.needles:
        raise ValueError(
            f"--needles {settings.needles} and one that is never shown are more than the {spec.number_of_keys()} keys "
            "that this tokenizer has; take fewer, or raise --needle-key-words"
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
