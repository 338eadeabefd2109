"""What preparing a corpus did, for its closing table. Free of torch."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from dataclasses import dataclass, field

from ..corpus.records import Kind
from ..progress_report import clock

_KINDS: dict[Kind, str] = {
    "jsonl": "JSON Lines", "array": "JSON arrays", "parquet": "parquet", "file": "text, one document per file",
    "paragraph": "text, one document per paragraph", "line": "text, one document per line",
}  # fmt: skip


@dataclass
class PreprocessReport:
    """What a run did. `tokens` and `text_bytes` are of each dataset, all of which have the same documents."""

    prefixes: list[str]
    documents: int = 0
    tokens: list[int] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)
    append_eod: bool = False
    dtype: str = ""
    seconds: float = 0.0
    inputs: Counter[Kind] = field(default_factory=Counter)
    """Files by what was found in them; empty where none was read."""
    skipped: Counter[str] = field(default_factory=Counter)
    bad_records: list[str] = field(default_factory=list)
    """The first few bad records, in words."""
    quarantine: str = ""
    """The file that holds all bad records, if there are any and it was asked for."""
    verified: str = ""
    accelerator: str = ""
    finished_before: bool = False
    """--resume found the datasets complete."""

    @property
    def eods(self) -> int:
        """End-of-document tokens of one dataset."""
        return self.documents if self.append_eod else 0

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for the closing table."""
        tokens, text_bytes = sum(self.tokens), sum(self.text_bytes)
        eods = self.eods * len(self.prefixes)
        kinds = ", ".join(f"{count:,} {_KINDS[kind]}" for kind, count in sorted(self.inputs.items()))
        files = sum(self.inputs.values())
        rows = [("input", f"{files:,} file{'s' if files > 1 else ''}: {kinds}")] if files else []
        rows += [
            ("documents", f"{self.documents:,}" + (" in each dataset" if len(self.prefixes) > 1 else "")),
            ("tokens", f"{tokens:,} ({self.dtype})"),
            ("bytes per token", f"{text_bytes / tokens:.3f}" if tokens else "-"),
            ("EOD tokens", f"{eods:,}" if self.append_eod else "0 (documents run together; see --append-eod)"),
            ("skipped", f"{sum(self.skipped.values()):,}"),
        ]
        rows += [(f"  {reason}", f"{count:,}") for reason, count in sorted(self.skipped.items())]
        if self.quarantine:
            rows.append(("quarantine", self.quarantine))
        rows.append(("verified", self.verified or "no (see --verify)"))
        if self.finished_before:
            rows.append(("encoded by", "an earlier run"))
        else:
            speed = text_bytes / 1e6 / max(self.seconds, 1e-9)
            rows += [
                ("encoded by", self.accelerator),
                ("wall time", f"{clock(self.seconds)} ({speed:.1f} MB/s)"),
                ("peak memory", f"{_peak_megabytes():,.0f} MB"),
            ]
        if len(self.prefixes) == 1:
            return [*rows, ("dataset", self.prefixes[0])]
        each = zip(self.prefixes, self.tokens, self.text_bytes, strict=True)
        return rows + [
            ("dataset", f"{prefix}: {count:,} tokens, {size / max(count, 1):.3f} bytes per token")
            for prefix, count, size in each
        ]


def _peak_megabytes() -> float:
    """Largest resident memory of this process plus that of its largest worker."""
    unit = 1 if sys.platform == "darwin" else 1024
    return (
        sum(resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1e6
    )
