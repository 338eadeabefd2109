"""Finished records on disk, one per line, so that an interrupted evaluation continues where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from .result_files import write_atomically
from .run_ranks import RunRanks


class KeyedRecord(Protocol):
    """What was measured of one item."""

    @property
    def key(self) -> Hashable:
        """The item."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, the item among them."""


Stored = TypeVar("Stored", bound=KeyedRecord)


class RecordLog(Generic[Stored]):
    """`samples.jsonl`: a first line that says which evaluation it is, then a line per record."""

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        from_json: Callable[[Mapping[str, Any]], Stored],
        *,
        overwrite: bool = False,
    ) -> None:
        """Open or begin the log. A last line that was cut off is dropped, from a file that is such a log.

        Args:
            path: the file; its folder exists.
            identity: what decides the records, in plain values.
            from_json: a record from what its `to_json` gave; may raise ValueError, KeyError, TypeError, AttributeError.
            overwrite: begin anew even if records are there.

        Raises:
            ValueError: the file contains samples of a different evaluation or is not a log; it is not changed.
        """
        self.path = path
        self.ranks = RunRanks()
        self._from_json = from_json
        self.records: dict[Hashable, Stored] = {}
        header = json.loads(json.dumps(identity))
        self._first = first = (json.dumps(header) + "\n").encode()
        content = b"" if overwrite or not path.exists() else path.read_bytes()
        if first.startswith(content):  # nothing yet, or a beginning that was cut off
            path.write_bytes(first)
            return
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].split(b"\n")[:-1]
        self._check(header, lines[0] if lines else content)
        for number, line in enumerate(lines[1:], 2):
            try:
                record = from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path} is damaged: line {number} is not a sample; choose another --output, or start over with "
                    "--overwrite"
                ) from error
            self.records[record.key] = record
        os.truncate(path, whole)

    def append(self, record: Stored) -> None:
        """Add a record and make sure that it is on disk."""
        with open(self.path, "a") as file:
            file.write(json.dumps(record.to_json()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[record.key] = record

    def absorb(self, part: Path) -> None:
        """Take over the records of another log of the same evaluation, and remove it."""
        for record in RecordLog(part, json.loads(self._first), self._from_json).records.values():
            if record.key not in self.records:
                self.append(record)
        part.unlink()

    def continue_in(self, part: Path) -> None:
        """Append to a new file from here on; what was read before stays known."""
        part.write_bytes(self._first)
        self.path = part

    def arrange(self, order: Iterable[Hashable]) -> None:
        """Bring the lines into this order of keys, all of which have records; those of other keys follow."""
        ranks = {key: rank for rank, key in enumerate(order)}
        arranged = sorted(self.records, key=lambda key: ranks.get(key, len(ranks)))  # stable
        if arranged == list(self.records):
            return
        self.records = {key: self.records[key] for key in arranged}
        lines = [json.dumps(record.to_json()) + "\n" for record in self.records.values()]
        write_atomically(self.path, self._first + "".join(lines).encode())

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
                f"{self.path} contains samples of a different evaluation (different: {', '.join(different)}); choose "
                "another --output, or start over with --overwrite"
            )
