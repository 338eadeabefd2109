"""The files that tasks are made of: text for needles, questions, words. Free of torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence

from ..text_files import check_text_files, read_text_file
from .needle_prompts import EssayText
from .question_prompts import QuestionSet, read_questions
from .ruler_settings import RulerSettings, SentenceRule
from .ruler_tasks import RULER_TASKS
from .sample_stream import RulerSources
from .word_lists import list_words, read_words

_AFTER_A_MARK = re.compile(r"(?<=[.!?])\s+")


def load_sources(settings: RulerSettings) -> RulerSources:
    """Everything that the chosen tasks need.

    Raises:
        ValueError: a file that is missing or of another form, fewer questions than samples, missing data of NLTK, or no
            package wonderwords.
    """
    needed = {RULER_TASKS[name].source for name in settings.chosen_tasks()} - {""}
    list_words()  # which fails early where the package is missing
    essay = None
    if "haystack" in needed:
        essay = EssayText(_essay_words(settings.haystack), sentence_splitter(settings.sentences))
    questions: dict[str, QuestionSet] = {
        source: _questions(f"--{source}", getattr(settings, source), settings.samples)
        for source in sorted(needed - {"haystack"})
    }
    more = () if settings.english_words is None else read_words("--english-words", settings.english_words)
    return RulerSources(essay, questions, more)


def digest_of_sources(settings: RulerSettings, sources: RulerSources) -> str:
    """Hex digest of the content of all files and words."""
    digest = hashlib.blake2b(digest_size=16)
    words = _essay_words(settings.haystack) if sources.essay is not None else ()
    questions = [repr((name, data)) for name, data in sorted(sources.questions.items())]
    for part in (list_words(), words, questions, sources.more_words):
        digest.update(json.dumps(list(part)).encode())
    return digest.hexdigest()


def sentence_splitter(rule: SentenceRule) -> Callable[[str], list[str]]:
    """What cuts a text into sentences. Raises ValueError where NLTK or its data are missing."""
    if rule == "marks":
        return _AFTER_A_MARK.split
    try:
        from nltk.tokenize import sent_tokenize

        sent_tokenize("One. Two.")
    except (ImportError, LookupError) as error:
        raise ValueError(
            "--sentences punkt needs the package nltk and its data; use: pip install nltk && python -m nltk.downloader "
            "punkt_tab (or set NLTK_DATA to a folder with tokenizers/punkt_tab), or choose --sentences marks, whose "
            "samples differ from RULER's"
        ) from error
    return sent_tokenize


def _essay_words(paths: Sequence[str]) -> tuple[str, ...]:
    check_text_files("--haystack", paths)
    texts = [read_text_file("--haystack", path) for path in paths]
    for number, path in enumerate(paths):
        if path.endswith(".json"):
            try:
                texts[number] = json.loads(texts[number])["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"--haystack {path} is not JSON with a field text: {error!r}") from error
    return tuple(re.sub(r"\s+", " ", "\n".join(texts)).split(" "))


def _questions(flag: str, path: str, samples: int) -> QuestionSet:
    found = read_questions(flag, path)
    if len(found.questions) <= samples:
        raise ValueError(
            f"{flag} {path} has {len(found.questions)} questions with answers, but --samples {samples} needs one more "
            "(for the control)"
        )
    return found
