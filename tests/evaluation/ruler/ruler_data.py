"""Texts and questions that RULER's tasks are made of, from a fixed seed, and a count of tokens without a tokenizer."""

from __future__ import annotations

import random
from typing import Any

from megatron_fwpkm.evaluation.ruler.needle_prompts import EssayText
from megatron_fwpkm.evaluation.ruler.question_prompts import _hotpot, _squad
from megatron_fwpkm.evaluation.ruler.sample_stream import RulerSources
from megatron_fwpkm.evaluation.ruler.source_files import sentence_splitter

_SYLLABLES = [first + second for first in "bdfgklmnprst" for second in "aeiou"]


def quarter_bytes(text: str) -> int:
    """A token is up to four bytes."""
    return -(-len(text.encode()) // 4)


class _Writer:
    """Sentences of made-up words, which Punkt and punctuation marks cut alike."""

    def __init__(self) -> None:
        self.rng = random.Random(5)
        self.words = sorted({"".join(self.rng.choices(_SYLLABLES, k=3)) for _ in range(9000)})

    def paragraph(self, sentences: int) -> str:
        """A few sentences of nine words."""
        return " ".join(" ".join(self.rng.choices(self.words, k=9)).capitalize() + "." for _ in range(sentences))


def ruler_data() -> dict[str, Any]:
    """`essay` (text), `squad` and `hotpotqa` (as their files hold it), `words` (9,000, less those drawn twice)."""
    writer = _Writer()
    essay = "\n\n".join(writer.paragraph(6) for _ in range(20))
    articles = []
    for _ in range(6):
        paragraphs = []
        for _ in range(4):
            text = writer.paragraph(4)
            words = text.split()
            asked = [
                {"question": f"What follows {words[place]}?", "is_impossible": place == 20,
                 "answers": [{"text": words[place + 1]}, {"text": words[place + 2]}]}
                for place in (3, 20, 30)
            ]  # fmt: skip
            paragraphs.append({"context": text, "qas": asked})
        articles.append({"paragraphs": paragraphs})
    pages = [[word.capitalize(), [writer.paragraph(1) + " ", writer.paragraph(1)]] for word in writer.words[:60]]
    hotpot = [
        {"question": f"Which is {number}?", "answer": writer.words[number], "context": writer.rng.sample(pages, count)}
        for number, count in enumerate((10, 8, 10, 10, 2, 10))
    ]
    return {"essay": essay, "squad": {"data": articles}, "hotpotqa": hotpot, "words": writer.words}


def ruler_sources(data: dict[str, Any]) -> RulerSources:
    """The same, as tasks take it."""
    questions = {"squad": _squad(data["squad"]), "hotpotqa": _hotpot(data["hotpotqa"])}
    return RulerSources(EssayText(data["essay"].split(), sentence_splitter("marks")), questions, data["words"])
