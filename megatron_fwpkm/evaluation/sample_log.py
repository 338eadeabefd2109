"""Samples on disk, a line each, so that an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .needle.recall import Answer
from .needle.samples import Cell


@dataclass(frozen=True)
class SampleRecord:
    """One finished sample."""

    cell: Cell
    asked_start: int
    """Position of the asked fact."""
    in_window: bool
    """Whether attention alone could reach it."""
    read_seconds: float
    """Wall time of reading the context."""
    answers: Mapping[str, Answer]
    """By condition."""
    texts: Mapping[str, str]
    """Question, value and given answers as text, for people."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        return {
            "length": self.cell.length,
            "depth": self.cell.depth,
            "index": self.cell.index,
            "asked_start": self.asked_start,
            "in_window": self.in_window,
            "read_seconds": self.read_seconds,
            "answers": {
                name: {"expected": answer.expected, "given": answer.given, "exact": answer.exact}
                for name, answer in self.answers.items()
            },
            "texts": dict(self.texts),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SampleRecord:
        """The record of a line."""
        answers = {
            name: Answer(tuple(answer["expected"]), tuple(answer["given"]))
            for name, answer in values["answers"].items()
        }
        cell = Cell(values["length"], values["depth"], values["index"])
        return cls(cell, values["asked_start"], values["in_window"], values["read_seconds"], answers, values["texts"])


class SampleLog:
    """`samples.jsonl`: a first line that says which evaluation it is, then a line per sample."""

    def __init__(self, path: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open or begin the log. A last line that was cut off is dropped, from a file that is such a log.

        Args:
            path: the file; its folder exists.
            identity: what decides the samples, in plain values.
            overwrite: begin anew even if samples are there.

        Raises:
            ValueError: the file, which is left as it is, holds samples of another evaluation, or is no such file.
        """
        self.path = path
        self.records: dict[Cell, SampleRecord] = {}
        header = json.loads(json.dumps(identity))
        first = (json.dumps(header) + "\n").encode()
        content = b"" if overwrite or not path.exists() else path.read_bytes()
        if first.startswith(content):  # nothing yet, or a beginning that was cut off
            path.write_bytes(first)
            return
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].split(b"\n")[:-1]
        self._check(header, lines[0] if lines else content)
        for number, line in enumerate(lines[1:], 2):
            try:
                record = SampleRecord.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path} is damaged: line {number} is no sample; choose another --output, or --overwrite to begin "
                    "anew"
                ) from error
            self.records[record.cell] = record
        os.truncate(path, whole)

    def append(self, record: SampleRecord) -> None:
        """Add a sample and make sure that it is on disk."""
        with open(self.path, "a") as file:
            file.write(json.dumps(record.to_json()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[record.cell] = record

    def _check(self, header: Mapping[str, Any], line: bytes) -> None:
        """See that a file with this first line is a log of this evaluation."""
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self.path} is not a log of samples: {error}; choose another --output") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.path} is not a log of samples; choose another --output")
        different = sorted(name for name in {*header, *found} if header.get(name) != found.get(name))
        if different:
            raise ValueError(
                f"{self.path} holds samples of another evaluation ({', '.join(different)} differ); choose another "
                "--output, or --overwrite to begin anew"
            )
