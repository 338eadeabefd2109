"""A memory trace as tables, heads first: for a terminal and the page, and all reads as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..result_files import aligned, csv_text
from .trace_results import FEW, SHARE_BORDERS, MemoryTraceResults

_CONTEXT_BEFORE, _CONTEXT_AFTER = 8, 4


class Passages:
    """The kept texts of a trace, by position."""

    def __init__(self, detail: Mapping[str, Any]) -> None:
        self._texts: dict[int, str] = {}
        for passage in detail["passages"]:
            self._texts.update(enumerate(passage["tokens"], passage["start"]))

    def text(self, position: int) -> str:
        """Of one token; empty where it was not kept."""
        return self._texts.get(position, "")

    def around(self, position: int) -> str:
        """A few words around a token, which stands in brackets."""
        parts = [self.text(place) for place in range(position - _CONTEXT_BEFORE, position + _CONTEXT_AFTER)]
        token = parts[_CONTEXT_BEFORE]
        space = " " if token.startswith((" ", "\n")) else ""
        parts[_CONTEXT_BEFORE] = f"{space}[{token.strip() or ' '}]"
        return " ".join("".join(parts).split())


def best_source(layer: Mapping[str, Any]) -> tuple[list[Any], float] | None:
    """The writer of most of what one token read in one layer, and its share; None where nobody wrote it."""
    shares: dict[int, float] = {}
    writers: dict[int, list[Any]] = {}
    for slot in layer["slots"]:
        for writer in slot["writers"]:
            shares[writer[0]] = shares.get(writer[0], 0.0) + slot["weight"] * writer[3]
            writers[writer[0]] = writer
    if not shares:
        return None
    best = max(shares, key=lambda position: shares[position])
    return writers[best], shares[best]


def trace_text(results: MemoryTraceResults) -> str:
    """The tables of a terminal."""
    detail = results.detail
    expected = "" if detail["expected"] is None else f" (expected: {detail['expected']!r})"
    lines = [f"question: {detail['question']!r}", f"answer: {detail['answer']!r}{expected}", ""]
    lines += [aligned(list(token_rows(detail))), ""]
    if results.knows_answers:
        lines += [f"exact match: {results.exact()}", "", aligned(list(recall_rows(results))), ""]
        lines += [aligned(list(right_rows(results))), "", aligned(list(share_rows(results))), ""]
    return "\n".join([*lines, aligned(list(usage_rows(results)))])


def token_rows(detail: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """For every answer token and layer: where most of what was read came from."""
    passages, ahead = Passages(detail), detail["lookahead"]
    yield (
        "token", "right", "layer", "gate", "first slot", "weight", "age", "share", "read", "chunk", "from token", "text"
    )  # fmt: skip
    for token in detail["tokens"]:
        right = {None: "", True: "yes", False: "no"}[token["right"]]
        shown = repr(token["text"].strip() or token["text"])
        for layer in token["layers"]:
            slot, source = layer["slots"][0], best_source(layer)
            told = ("0 %", "", "", "", "nobody wrote it")
            if source is not None:
                (position, read, chunk, _), share = source
                place = position + ahead
                told = (f"{share:.0%}", str(read), str(chunk), f"{place:,}", passages.around(place))
            yield (
                shown, right, str(layer["layer"]), f"{layer['gate']:.2f}", f"{slot['slot']:,}",
                f"{slot['weight']:.2f}", f"{slot['age']:,}" if slot["age"] else "", *told,
            )  # fmt: skip


def recall_rows(results: MemoryTraceResults) -> Iterator[Sequence[str]]:
    """recall@slot by layer and head."""
    yield ("layer", "head", "recall@1", f"recall@{FEW}", "recall@all", "share of the right token")
    for layer in results.layers:
        for head in results.heads(layer):
            recalls = (str(results.recall(layer, head, slots)) for slots in (1, FEW, None))
            yield (layer, head, *recalls, f"{results.right_share(layer, head):.2f}")


def right_rows(results: MemoryTraceResults) -> Iterator[Sequence[str]]:
    """Right answers by what was found."""
    yield ("layer", "right, of", "the right slot is first", "it is not")
    for layer in results.layers:
        for name, right in (("tokens", results.right_tokens), ("answers (all tokens)", results.right_answers)):
            yield (layer, name, str(right(layer, found=True)), str(right(layer, found=False)))


def share_rows(results: MemoryTraceResults) -> Iterator[Sequence[str]]:
    """Right answer tokens by the share of the right token in what they read."""
    borders = [0.0, *SHARE_BORDERS, 1.0]
    yield ("right tokens, layer", *(f"share {low:.0%} to {high:.0%}" for low, high in pairwise(borders)))
    for layer in results.layers:
        yield (layer, *map(str, results.right_by_share(layer)))


def usage_rows(results: MemoryTraceResults) -> Iterator[Sequence[str]]:
    """The use of the slots by layer."""
    names = {
        "written": "slots written", "read": "slots read", "collided": "with several writers",
        "reads_of_collided": "reads of those", "answer_reads_of_collided": "answer's reads of those",
        "answer_reads_of_unwritten": "answer's reads of unwritten", "kl_to_uniform": "KL to uniform",
    }  # fmt: skip
    yield ("layer", *names.values())
    for layer in results.layers:
        yield (layer, *(
            f"{results.mean(layer, name):.2f} nats" if name == "kl_to_uniform" else f"{results.mean(layer, name):.1%}"
            for name in names
        ))  # fmt: skip


def reads_csv(results: MemoryTraceResults) -> str:
    """Every slot that was read for an answer token of the sample that is shown, a row per writer."""
    detail = results.detail
    passages, ahead, rows = Passages(detail), detail["lookahead"], []
    for number, token in enumerate(detail["tokens"]):
        for layer in token["layers"]:
            for rank, slot in enumerate(layer["slots"], 1):
                common = {
                    "answer_token": number, "text": token["text"], "layer": layer["layer"], "gate": layer["gate"],
                    "head": slot["head"], "rank": rank, "slot": slot["slot"], "weight": slot["weight"],
                    "age": slot["age"] or None, "different_writers": slot["different_writers"],
                }  # fmt: skip
                for position, read, chunk, share in slot["writers"] or [(None, None, None, None)]:
                    known = position is not None
                    rows.append(common | {
                        "writer_position": position, "writer_read": read, "writer_chunk": chunk, "writer_share": share,
                        "writer_text": passages.text(position) if known else None,
                        "holds_text": passages.text(position + ahead) if known else None,
                    })  # fmt: skip
    return csv_text(rows)
