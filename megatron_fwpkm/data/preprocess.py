"""Text files to Megatron datasets: tokenized in order, every bad record accounted for, published whole or not at all.

The work of tools/preprocess_data.py. Free of torch.
"""

from __future__ import annotations

import base64
import json
import resource
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_fwpkm.config import DataConfig

from .corpus import BadRecord, CorpusFile, TxtDocuments, corpus_blocks, open_corpus
from .encoding import EncodingOptions, encode_blocks
from .indexed_format import IndexedWriter, token_dtype
from .progress import Progress, clock
from .tokenizers import Tokenizer, build_tokenizer

_SHOWN_BAD_RECORDS = 10

OnError = Literal["fail", "skip", "quarantine"]


@dataclass(frozen=True)
class PreprocessOptions:
    """What tools/preprocess_data.py is asked for; names as its flags."""

    inputs: tuple[str, ...]
    output_prefix: str
    data: DataConfig
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    workers: int = 1
    on_error: OnError = "fail"
    txt_documents: TxtDocuments = "file"
    overwrite: bool = False

    def prefix(self, key: str) -> str:
        """Prefix of the dataset of one key, named as Megatron-LM names it."""
        return f"{self.output_prefix}_{key}_document"

    @property
    def quarantine_path(self) -> Path:
        """Where --on-error quarantine puts bad records."""
        return Path(f"{self.output_prefix}_quarantine.jsonl")


@dataclass
class PreprocessReport:
    """What a run did; counts are of the first key's dataset, of which every other key's has the same documents."""

    prefixes: list[str]
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    eods: int = 0
    dtype: str = ""
    seconds: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)
    bad_records: list[str] = field(default_factory=list)
    """The first few bad records, in words."""

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for the closing table."""
        rows = [
            ("documents", f"{self.documents:,}"),
            ("tokens", f"{self.tokens:,} ({self.dtype})"),
            ("bytes per token", f"{self.text_bytes / max(self.tokens, 1):.3f}"),
            ("EOD tokens", f"{self.eods:,}" if self.eods else "0 (documents run together; see --append-eod)"),
            ("skipped", f"{sum(self.skipped.values()):,}"),
        ]
        rows += [(f"  {reason}", f"{count:,}") for reason, count in sorted(self.skipped.items())]
        rows += [
            ("wall time", f"{clock(self.seconds)} ({self.text_bytes / 1e6 / max(self.seconds, 1e-9):.1f} MB/s)"),
            ("peak memory", f"{_peak_megabytes():,.0f} MB"),
        ]
        return rows + [("dataset", prefix) for prefix in self.prefixes]


class _Quarantine:
    """Bad records as JSON lines beside their final place, renamed there at the end."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists already; give another --output-prefix, or --overwrite to replace it")
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._stream = open(self._partial, "w", encoding="utf-8")

    def __enter__(self) -> _Quarantine:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._partial.unlink(missing_ok=True)

    def add(self, bad: BadRecord) -> None:
        """Keep one record: as text where it is text, in base64 where not."""
        row: dict[str, Any] = {"file": bad.path, "line": bad.line, "reason": bad.reason, "detail": bad.detail}
        try:
            row["record"] = bad.raw.decode("utf-8")
        except UnicodeDecodeError:
            row["record_base64"] = base64.b64encode(bad.raw).decode("ascii")
        self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def publish(self) -> None:
        """Put the file into place."""
        self._stream.close()
        self._partial.replace(self._path)


def preprocess(options: PreprocessOptions, progress: Progress | None = None) -> PreprocessReport:
    """Tokenize all inputs into one dataset per key. The output does not depend on the number of workers.

    Raises:
        ValueError: wrong options, inputs or tokenizer; existing output; with on_error "fail" the first bad record; no
            document at all; a worker that died. Nothing is published then.
        OSError: a file that cannot be read or written.
    """
    _check(options)
    tokenizer = build_tokenizer(options.data)
    files = open_corpus(options.inputs, options.txt_documents)
    progress = progress or Progress(sum(file.size for file in files))
    report = PreprocessReport([options.prefix(key) for key in options.json_keys])
    encoding = EncodingOptions(options.data, options.json_keys, options.append_eod, options.on_error == "fail")
    dtype = token_dtype(tokenizer.vocab_size)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(IndexedWriter(prefix, dtype, overwrite=options.overwrite)) for prefix in report.prefixes
        ]
        quarantine = None
        if options.on_error == "quarantine":
            quarantine = stack.enter_context(_Quarantine(options.quarantine_path, options.overwrite))
        text_bytes = [0] * len(writers)
        stack.callback(progress.close)
        for block in encode_blocks(corpus_blocks(files), encoding, options.workers):
            _note_bad(block.bad, options, quarantine, report)
            for key, writer in enumerate(writers):
                writer.append(block.tokens[key], block.lengths[key])
                text_bytes[key] += block.text_bytes[key]
            progress.update(block.consumed, text_bytes[0], writers[0].tokens)
        if writers[0].documents == 0:
            found = ", ".join(f"{count} x {reason}" for reason, count in report.skipped.items()) or "the input is empty"
            raise ValueError(f"--input holds no document ({found}); nothing was written")
        for key, writer in enumerate(writers):
            writer.publish(_sidecar(options, tokenizer, files, report, options.json_keys[key], text_bytes[key], writer))
        if quarantine is not None:
            quarantine.publish()
    report.documents, report.tokens, report.text_bytes = writers[0].documents, writers[0].tokens, text_bytes[0]
    report.eods = report.documents if options.append_eod else 0
    report.dtype, report.seconds = dtype.name, progress.seconds
    return report


def _check(options: PreprocessOptions) -> None:
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers} must be at least 1")
    if not options.json_keys or len(set(options.json_keys)) < len(options.json_keys):
        raise ValueError(f"--json-keys {' '.join(options.json_keys)}: name at least one key, each once")


def _note_bad(
    bad: tuple[BadRecord, ...], options: PreprocessOptions, quarantine: _Quarantine | None, report: PreprocessReport
) -> None:
    for record in bad:
        if options.on_error == "fail":
            raise ValueError(
                f"{record}; nothing was written. --on-error skip or quarantine goes on without such records"
            )
        report.skipped[record.reason] += 1
        if len(report.bad_records) < _SHOWN_BAD_RECORDS:
            report.bad_records.append(str(record))
        if quarantine is not None:
            quarantine.add(record)


def _sidecar(
    options: PreprocessOptions,
    tokenizer: Tokenizer,
    files: list[CorpusFile],
    report: PreprocessReport,
    key: str,
    text_bytes: int,
    writer: IndexedWriter,
) -> dict[str, Any]:
    """What training checks and a reader wants to know; nothing in it depends on when or with how many workers it was
    made."""
    return {
        "tokenizer": {
            "type": tokenizer.kind,
            "identity": tokenizer.identity,
            "vocab_size": tokenizer.vocab_size,
            "eod": tokenizer.eod,
        },
        "options": {
            "json_key": key,
            "append_eod": options.append_eod,
            "on_error": options.on_error,
            "txt_documents": options.txt_documents,
        },
        "inputs": [
            {"path": file.path, "bytes": file.size, "kind": file.kind, "gzip": file.compressed} for file in files
        ],
        "text_bytes": text_bytes,
        "eods": writer.documents if options.append_eod else 0,
        "skipped": dict(report.skipped),
    }


def _peak_megabytes() -> float:
    """Largest resident memory of this process plus that of its largest worker."""
    unit = 1 if sys.platform == "darwin" else 1024
    return (
        sum(resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1e6
    )
