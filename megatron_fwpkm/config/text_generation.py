"""The options of tools/generate_text.py and tools/chat.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import Above, AtLeast, Between
from .tool_options import Metavar, NotWith


@dataclass(frozen=True)
class TextOptions:
    """Which model writes, and how a token is chosen."""

    model: Annotated[str, Metavar("DIR")]
    """exported folder, checkpoint or --save folder of a run"""
    max_new_tokens: Annotated[int, AtLeast(1)] = 100
    """most tokens to generate"""
    temperature: float = 0.0
    """sampling temperature; 0 is greedy decoding"""
    top_k: Annotated[int, AtLeast(0)] = 0
    """sample from the N likeliest tokens; 0 for all"""
    top_p: Annotated[float, Between(0, 1), Metavar("P")] = 1.0
    """nucleus sampling: probability mass"""
    repetition_penalty: Annotated[float, Above(0)] = 1.0
    """above 1: penalise repetition"""
    seed: int = 0
    """random seed of sampling"""
    device: Annotated[str, Metavar("NAME")] = "auto"
    """cpu, cuda, cuda:1, ...; auto selects cuda if available"""


@dataclass(frozen=True)
class GenerateOptions(TextOptions):
    """Which text is continued, after what was read."""

    prompt: Annotated[str | None, NotWith("prompt")] = None
    """text to continue (default: standard input)"""
    prompt_file: Annotated[str | None, NotWith("prompt"), Metavar("FILE")] = None
    """file with the text to continue (default: --prompt)"""
    remember: Annotated[tuple[str, ...], Metavar("FILE")] = ()
    """documents to read first, in this order (default: no documents)"""
    memory: Literal["on", "frozen", "off"] = "on"
    """on: read and write; frozen: read what was remembered, but do not write prompt or answer; off: use the initial
    memory and never write"""


@dataclass(frozen=True)
class ChatOptions(TextOptions):
    """What a session begins with."""

    read: Annotated[tuple[str, ...], Metavar("FILE")] = ()
    """documents to read first, in this order (default: no documents)"""
    memory: Annotated[str | None, Metavar("DIR")] = None
    """folder that /save has written, to go on with its memory (default: the model's initial memory)"""
