"""Questions about documents: those of SQuAD and HotpotQA from local files, among documents of other questions."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..text_files import check_text_files, read_text_file
from .prompt_sizes import Misfit, RulerSample

_ASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
_TEXT = f"{_ASK}\n\nThe following are given documents.\n\n{{context}}\n\n{_ASK}\n\nQuestion: {{question}}"
_PREFIX = " Answer:"


@dataclass(frozen=True)
class Question:
    """A question and where its answer stands."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    """Numbers of the documents that answer it."""
    related: tuple[int, ...] = ()
    """Numbers of documents of the same article, which are taken before others."""


@dataclass(frozen=True)
class QuestionSet:
    """A data set."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


def read_questions(flag: str, path: str) -> QuestionSet:
    """A data set in a local file.

    Args:
        flag: `--squad` (SQuAD 2.0) or `--hotpotqa` (HotpotQA with distractors): which form the file has.
        path: of the JSON file.

    Raises:
        ValueError: no file, no JSON, or JSON of another form.
    """
    check_text_files(flag, (path,))
    text = read_text_file(flag, path)
    try:
        data = json.loads(text)
        found = _squad(data) if flag == "--squad" else _hotpot(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{flag} {path} is not a data set of this form: {error!r}") from error
    if not found.questions:
        raise ValueError(f"{flag} {path} has no question with an answer")
    return found


def _squad(data: Any) -> QuestionSet:
    articles = [article["paragraphs"] for article in data["data"]]
    documents = sorted({paragraph["context"] for article in articles for paragraph in article})
    numbers = {text: number for number, text in enumerate(documents)}
    questions = []
    for article in articles:
        places = [numbers[paragraph["context"]] for paragraph in article]
        for paragraph, place in zip(article, places, strict=True):
            related = tuple(other for other in places if other != place)
            questions += [
                Question(one["question"], tuple(answer["text"] for answer in one["answers"]), (place,), related)
                for one in paragraph["qas"]
                if not one["is_impossible"]
            ]
    return QuestionSet(tuple(questions), tuple(documents))


def _hotpot(data: Any) -> QuestionSet:
    pages = [[f"{title}\n{''.join(sentences)}" for title, sentences in one["context"]] for one in data]
    documents = sorted({page for shown in pages for page in shown})
    numbers = {text: number for number, text in enumerate(documents)}
    questions = [
        Question(one["question"], (one["answer"],), tuple(numbers[page] for page in shown))
        for one, shown in zip(data, pages, strict=True)
    ]
    return QuestionSet(tuple(questions), tuple(documents))


class QuestionPrompts:
    """Draws the samples of a data set, whose questions are asked in order. The size is the number of documents."""

    STEP = 10
    """The smallest size, and what is taken off a sample that is too long."""

    def __init__(self, seed: int, questions: QuestionSet) -> None:
        self._seed, self._set = seed, questions
        self._random = random.Random(seed)

    def draw(self, number: int, size: int) -> RulerSample:
        """A new sample with question `number`. Raises Misfit if its documents are more than `size`."""
        question = self._set.questions[number]
        documents = [self._set.documents[place] for place in self._chosen(question, size)]
        random.Random(self._seed).shuffle(documents)
        context = "\n\n".join(f"Document {place}:\n{text}" for place, text in enumerate(documents, 1))
        return RulerSample(_TEXT.format(context=context, question=question.text), _PREFIX, question.answers)

    def _chosen(self, question: Question, size: int) -> Sequence[int]:
        """Numbers of `size` documents: those that answer, then related ones, then any others."""
        total = len(self._set.documents)
        if size >= total:
            return [place % total for place in range(size)]
        own, related = question.documents, question.related
        if (more := size - len(own)) > len(related):
            known = {*own, *related}
            others = [place for place in range(total) if place not in known]
            return [*own, *related, *self._random.sample(others, more - len(related))]
        if more < 0:
            raise Misfit
        return [*own, *self._random.sample(related, more)]
