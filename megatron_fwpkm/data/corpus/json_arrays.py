"""A JSON array read element by element: it need not fit in memory. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .compression import DecodedStream
from .records import Cursor


def array_blocks(stream: DecodedStream, start: Cursor, block_bytes: int) -> Iterator[tuple[int, bytes, Cursor, str]]:
    """The elements of a JSON array as JSON Lines, numbered from 1, in blocks of about `block_bytes`: number of the
    first, the lines, the place behind them, and "".

    Where the array breaks no later element can be told for sure: a string could look like one. The last block is then
    the beginning of what is left, with what is wrong and how much is lost in words.
    """
    size, held = 0, list[bytes]()
    number = 0
    for number, (element, broken) in enumerate(_elements(stream, block_bytes), 1):
        if held and (broken or size >= block_bytes):
            yield number - len(held), b"\n".join(held) + b"\n", Cursor(number - 1, number), ""
            size, held = 0, []
        if number <= start.position:
            continue
        if broken:
            yield number, element.encode("latin-1"), Cursor(number, number + 1), broken
            return
        held.append(element.replace("\r", " ").replace("\n", " ").encode("latin-1"))
        size += len(element)
    if held:
        yield number - len(held) + 1, b"\n".join(held) + b"\n", Cursor(number, number + 1), ""


def _elements(stream: DecodedStream, block_bytes: int) -> Iterator[tuple[str, str]]:
    """Elements and "", the last one perhaps what is left of a broken array and what is wrong. latin-1 keeps bytes as
    they are: JSON's own signs are ASCII."""
    decoder = json.JSONDecoder()
    text = stream.read(block_bytes).decode("latin-1").removeprefix("\xef\xbb\xbf").lstrip()[1:].lstrip()
    while text[:1] != "]":
        end, problem = _element_end(decoder, text)
        if not problem and end in (0, len(text)):  # cut off, or a number that may go on
            more = stream.read(max(block_bytes, len(text)))  # doubling: a large element is not read again and again
            if more:
                text = (text + more.decode("latin-1")).lstrip(" \t\r\n,")
                continue
            problem = "" if end else "its closing bracket is missing"
        if problem:
            lost = len(text)
            while more := stream.read(block_bytes):
                lost += len(more)
            told = f"{problem}; the remaining {lost:,} bytes are left out; fix the array, or write JSON Lines"
            yield text[:block_bytes], told
            return
        yield text[:end], ""
        text = text[end:].lstrip(" \t\r\n,")


def _element_end(decoder: json.JSONDecoder, text: str) -> tuple[int, str]:
    """Where the JSON value at the start of `text` ends (0: not in `text`), and what more text could not mend."""
    try:
        return decoder.raw_decode(text)[1], ""
    except json.JSONDecodeError as error:
        broken = error.pos < len(text) - 16 and not error.msg.startswith("Unterminated")
        return 0, f"{error.msg} {error.pos:,} bytes after its beginning" if broken else ""
    except RecursionError:
        return 0, "it is nested too deeply"
    except ValueError as error:
        return 0, str(error)
