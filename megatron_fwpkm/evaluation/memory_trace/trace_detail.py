"""Everything about one traced sample as plain values, with the passages of text that its answer came from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...data.tokenizers import Tokenizer
from ..trace.answer_trace import AnswerTask, AnswerTrace, LayerRead

BEFORE, AFTER = 24, 16
"""Tokens of a passage before and behind the token that wrote a slot."""
_MOST_SOURCES = 48
"""Positions per answer token and layer whose text is kept, heaviest first."""


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that every token adds to that of the tokens before it; joined they are the whole text.

    Of a character whose bytes are several tokens, the last one has the text.
    """
    texts, before = [], ""
    for stop in range(1, len(ids) + 1):
        now = tokenizer.decode([int(token) for token in ids[:stop]])
        whole = now.startswith(before) and (stop == len(ids) or not now.endswith("\ufffd"))
        texts.append(now[len(before) :] if whole else "")
        before = now if whole else before
    return texts


def shares_by_position(read: LayerRead) -> dict[int, float]:
    """How much of what one token read in one layer was written by the token at a position, heaviest first."""
    shares: dict[int, float] = defaultdict(float)
    for slot in read.slots:
        for source in slot.writers:
            shares[source.position] += slot.weight * source.share
    return dict(sorted(shares.items(), key=lambda entry: -entry[1]))


def trace_detail(task: AnswerTask, trace: AnswerTrace, tokenizer: Tokenizer, lookahead: int) -> dict[str, Any]:
    """The trace of one sample for trace.json and the page.

    Returns:
        Plain values; a writer is [position, read, chunk, share], a passage has the texts of its tokens from `start` on.
    """
    whole = np.concatenate([task.context, np.asarray([*task.question, *trace.given], dtype=np.int64)])
    wanted: set[int] = set(task.places)
    tokens = []
    for number, (token, text) in enumerate(zip(trace.tokens, token_texts(tokenizer, trace.given), strict=True)):
        layers = []
        for layer, read in sorted(token.layers.items()):
            wanted |= set(list(shares_by_position(read))[:_MOST_SOURCES])
            slots = [slot._asdict() | {"writers": [list(source) for source in slot.writers]} for slot in read.slots]
            layers.append({"layer": layer, "gate": read.gate, "slots": slots})
        expected = task.expected[number] if number < len(task.expected) else None
        place = task.places[number] if number < len(task.places) else None
        tokens.append({
            "token": token.given, "text": text, "right": None if expected is None else expected == token.given,
            "place": place, "layers": layers,
        })  # fmt: skip
    expected_text = tokenizer.decode(list(task.expected)) if task.expected else None
    return {
        "context_tokens": len(task.context), "lookahead": lookahead, "question": tokenizer.decode(list(task.question)),
        "expected": expected_text, "answer": tokenizer.decode(list(trace.given)), "tokens": tokens,
        "passages": _passages(whole, wanted, tokenizer),
    }  # fmt: skip


def _passages(ids: np.ndarray, positions: set[int], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The text around positions; passages that overlap are one."""
    spans: list[list[int]] = []
    for position in sorted(positions):
        start, stop = max(0, position - BEFORE), min(len(ids), position + AFTER)
        if spans and start <= spans[-1][1]:
            spans[-1][1] = stop
        else:
            spans.append([start, stop])
    return [{"start": start, "tokens": token_texts(tokenizer, ids[start:stop].tolist())} for start, stop in spans]
