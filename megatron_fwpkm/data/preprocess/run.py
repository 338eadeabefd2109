"""Text files to Megatron datasets: tokenized in order, every bad record accounted for, published whole or not at all.

The work of tools/preprocess_data.py. Free of torch.
"""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...processes.freed_memory import free_large_tables
from ..corpus.input_files import STDIN, CorpusFile, corpus_blocks, corpus_identity, open_corpus, shard_of
from ..corpus.json_keys import check_json_keys
from ..corpus.records import BadRecord, Cursor
from ..encoders.acceleration import Accelerator, AcceleratorMismatch
from ..indexed.indexed_format import IndexedWriter, dataset_paths, read_dataset_info, rename_all, token_dtype
from ..output_prefix import check_output_prefix
from ..progress_report import ProgressReport
from ..tokenizers import Tokenizer, build_tokenizer
from .document_sample import DocumentSample
from .encoding import EncodedBlock, Encoders, EncodingOptions
from .journal import BadRecordsFile, Journal, signature
from .preprocess_options import PreprocessOptions
from .preprocess_report import PreprocessReport
from .verification import check_sample

_SHOWN_BAD_RECORDS = 10
TOOL_VERSION = 2
"""Rises when the same inputs and options would give other tokens."""


def preprocess(options: PreprocessOptions, progress: ProgressReport | None = None) -> PreprocessReport:
    """Tokenize all inputs into one dataset per key. The output does not depend on the number of workers, nor on how
    often the run was killed and resumed.

    Raises:
        ValueError: wrong options, inputs or tokenizer; existing output; with on_error "fail" the first bad record; no
            document at all; a worker that died; an input that changed meanwhile. Nothing is published then.
        OSError: a file that cannot be read or written.
    """
    free_large_tables()
    tokenizer = build_tokenizer(options.data)
    _check(options, tokenizer)
    whole = open_corpus(options.inputs, options.txt_documents)
    corpus = corpus_identity(whole)
    files = shard_of(whole, options.shard, options.num_shards)
    if options.resume and any(file.path == STDIN for file in files):
        raise ValueError(
            "--resume cannot be used with --input -, which can be read only once; write the input to a file first"
        )
    for idle in _idle_options(options, files):
        print(f"note: {idle}", file=sys.stderr)
    run_signature = _signature(options, tokenizer, files)
    journal = Journal(options.journal_path, run_signature)
    if journal.path.exists() and not (options.resume or options.overwrite):
        raise ValueError(
            f"{journal.path} belongs to an interrupted run: --resume continues it, --overwrite starts over"
        )
    state = journal.read() if options.resume else None
    if state is not None and "renames" in state:
        rename_all([(Path(partial), Path(final)) for partial, final in state["renames"]])
        journal.remove()
        state = None
    if options.resume and state is None and (done := _finished(options, run_signature)) is not None:
        return done
    accelerator: Accelerator = "none" if options.control_tokens == "parse" else options.accelerator
    try:
        with Encoders(_encoding_options(options, accelerator), tokenizer, options.workers) as encoders:
            accelerator = encoders.accelerator
            if encoders.notice:
                print(f"note: --accelerator {options.accelerator}: {encoders.notice}", file=sys.stderr)
            chosen = replace(options, accelerator=accelerator)
            with _Run(chosen, tokenizer, encoders, files, corpus, journal, progress) as run:
                return run.work(state, run_signature)
    except AcceleratorMismatch as error:
        if any(file.path == STDIN for file in files):
            raise ValueError(f"{error}; nothing was written; use --accelerator none with --input -") from error
        print(f"note: --accelerator {accelerator}: {error}; starting over with the plain tokenizer", file=sys.stderr)
        journal.remove()
        return preprocess(replace(options, accelerator="none", resume=False))


class _Run:
    """One run from its first block to publishing."""

    def __init__(
        self,
        options: PreprocessOptions,
        tokenizer: Tokenizer,
        encoders: Encoders,
        files: list[CorpusFile],
        corpus: str,
        journal: Journal,
        progress: ProgressReport | None,
    ) -> None:
        self.corpus = corpus
        self.options, self.tokenizer, self.files, self.journal = options, tokenizer, files, journal
        self.progress = progress or ProgressReport(sum(file.end - file.begin for file in files))
        self.report = PreprocessReport(options.prefixes)
        self.encoders = encoders
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.sample = DocumentSample(options.verify)
        self.writers: list[IndexedWriter] = []
        self.quarantine: BadRecordsFile | None = None
        self.text_bytes = [0] * len(self.report.prefixes)
        self._stack = ExitStack()

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        keep = self.journal.path.exists()  # there is something to go on from
        for writer in self.writers:
            writer.keep = keep
        if self.quarantine is not None:
            self.quarantine.keep = keep
        self._stack.close()

    def work(self, state: dict[str, Any] | None, run_signature: str) -> PreprocessReport:
        """Encode, write and publish everything behind `state`."""
        options, report = self.options, self.report
        self._open_outputs(state is not None)
        start = self._restore(state) if state is not None else (0, Cursor())
        if state is None:
            self.journal.remove()  # of a run that is not gone on with
        cut = corpus_blocks(self.files, options.json_keys, start)
        blocks = (replace(block, sample_below=self.sample.below) for block in cut)
        for block in self.encoders.encode(blocks):
            self._take(block)
            if self.journal.due:
                self._checkpoint(block)
        writers = self.writers
        if writers[0].documents == 0 and options.num_shards == 1:
            found = ", ".join(f"{count} x {reason}" for reason, count in report.skipped.items()) or "the input is empty"
            self.journal.remove()
            raise ValueError(f"--input contains no documents ({found}); nothing was written")
        for file in self.files:
            file.check_unchanged()
        if options.verify:
            report.verified = check_sample(self.sample, self.encoders.block_encoder, writers)
        renames = []
        for key, writer in enumerate(writers):
            renames += writer.prepare(self._sidecar(options.keys[key], self.text_bytes[key], writer, run_signature))
        if self.quarantine is not None:
            renames += self.quarantine.prepare()
        self.journal.write({"renames": [[str(partial), str(final)] for partial, final in renames]})
        rename_all(renames)
        self.journal.remove()
        report.documents, report.tokens = writers[0].documents, [writer.tokens for writer in writers]
        report.text_bytes, report.append_eod = self.text_bytes, options.append_eod
        report.inputs = Counter(file.kind for file in self.files)
        if options.on_error == "quarantine" and report.skipped:
            report.quarantine = str(options.quarantine_path)
        report.accelerator = {"none": "the plain tokenizer"}.get(options.accelerator, options.accelerator)
        report.dtype, report.seconds = self.dtype.name, self.progress.seconds
        return report

    def _open_outputs(self, resume: bool) -> None:
        options = self.options
        for prefix in self.report.prefixes:
            writer = IndexedWriter(prefix, self.dtype, overwrite=options.overwrite, resume=resume)
            self.writers.append(self._stack.enter_context(writer))
        if options.on_error == "quarantine":
            opened = BadRecordsFile(options.quarantine_path, overwrite=options.overwrite, resume=resume)
            self.quarantine = self._stack.enter_context(opened)
        self._stack.callback(self.progress.close)

    def _take(self, block: EncodedBlock) -> None:
        file = self.files[block.file_number]
        for bad in block.bad:
            self._note(replace(bad, line=bad.line + file.lines_before) if file.begin else bad)
        self.sample.offer(block.file_number, block.sample, [writer.documents for writer in self.writers])
        for key, writer in enumerate(self.writers):
            writer.append(block.tokens[key], block.lengths[key])
            self.text_bytes[key] += block.text_bytes[key]
        self.progress.update(block.consumed, self.text_bytes[0], self.writers[0].tokens)

    def _note(self, bad: BadRecord) -> None:
        if self.options.on_error == "fail":
            raise ValueError(f"{bad}; nothing was written; use --on-error skip or quarantine to leave out such records")
        self.report.skipped[bad.reason] += 1
        if len(self.report.bad_records) < _SHOWN_BAD_RECORDS:
            self.report.bad_records.append(str(bad))
        if self.quarantine is not None:
            self.quarantine.add(_quarantine_row(bad))

    def _checkpoint(self, block: EncodedBlock) -> None:
        self.journal.write(
            {
                "place": [block.file_number, block.end.position, block.end.line],
                "writers": [writer.checkpoint() for writer in self.writers],
                "quarantine": self.quarantine.checkpoint() if self.quarantine else 0,
                "text_bytes": self.text_bytes,
                "skipped": dict(self.report.skipped),
                "bad_records": self.report.bad_records,
                "sample": self.sample.state(),
                "modified": [file.modified for file in self.files],
                "sha256": [file.sha256 for file in self.files[: block.file_number]],
            }
        )

    def _restore(self, state: dict[str, Any]) -> tuple[int, Cursor]:
        for file, modified in zip(self.files, state["modified"], strict=True):
            if file.modified != modified:
                raise ValueError(f"{file.path} has changed since the interrupted run; start over with --overwrite")
        for writer, written in zip(self.writers, state["writers"], strict=True):
            writer.restore(written)
        if self.quarantine is not None:
            self.quarantine.restore(state["quarantine"])
        self.text_bytes = list(state["text_bytes"])
        self.report.skipped.update(state["skipped"])
        self.report.bad_records += state["bad_records"]
        self.sample.restore(state["sample"])
        for file, sha256 in zip(self.files, state["sha256"], strict=False):
            file.sha256 = sha256
        number, position, line = state["place"]
        return number, Cursor(position, line)

    def _sidecar(self, key: str, text_bytes: int, writer: IndexedWriter, run_signature: str) -> dict[str, Any]:
        """What training checks and a reader wants to know; nothing in it depends on when, with how many workers or how
        fast it was made."""
        options, tokenizer = self.options, self.tokenizer
        sidecar = {
            "tokenizer": {
                "type": tokenizer.kind,
                "identity": tokenizer.identity,
                "vocab_size": tokenizer.vocab_size,
                "eod": tokenizer.eod,
            },
            "tool_version": TOOL_VERSION,
            "options": options.recorded(key),
            "dtype_reason": f"{tokenizer.vocab_size} ids; uint16 holds fewer than 65,500, int32 all others",
            "inputs": [file.description() for file in self.files],
            "text_bytes": text_bytes,
            "eods": writer.documents if options.append_eod else 0,
            "skipped": dict(self.report.skipped),
            "run": run_signature,
        }
        if options.num_shards == 1:
            return sidecar
        return sidecar | {"shard": [options.shard, options.num_shards], "corpus": self.corpus}


def _encoding_options(options: PreprocessOptions, accelerator: Accelerator) -> EncodingOptions:
    return EncodingOptions(
        data=options.data, json_keys=options.json_keys, append_eod=options.append_eod,
        stop_at_bad=options.on_error == "fail", prepend_bos=options.prepend_bos,
        control_tokens=options.control_tokens, bad_bytes=options.bad_bytes, blend_keys=options.blend_keys,
        accelerator=accelerator, sample=options.verify,
    )  # fmt: skip


def _check(options: PreprocessOptions, tokenizer: Tokenizer) -> None:
    check_output_prefix(options.output_prefix)
    folder = Path(options.output_prefix).resolve().parent
    for path in options.inputs:
        if path != STDIN and Path(path).is_dir() and folder.is_relative_to(Path(path).resolve()):
            raise ValueError(
                f"--output-prefix {options.output_prefix} is inside the folder --input {path}, so the next run would "
                f"read these datasets as text; write to another folder"
            )
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers} must be at least 1")
    check_json_keys(options.json_keys)
    if not 0 <= options.shard < options.num_shards:
        raise ValueError(
            f"--shard-id {options.shard} must be at least 0 and less than --num-shards {options.num_shards}"
        )
    if options.prepend_bos and tokenizer.bos is None:
        name = tokenizer.path or tokenizer.kind
        raise ValueError(f"--prepend-bos: {name} has no beginning-of-sequence token; remove the flag")
    if options.control_tokens != "text" and not tokenizer.control_tokens():
        raise ValueError(
            f"--control-tokens {options.control_tokens}: {tokenizer.kind} has no control tokens that text can contain; "
            "remove the flag"
        )
    if options.verify < 0:
        raise ValueError(f"--verify {options.verify} must be at least 0")


def _idle_options(options: PreprocessOptions, files: list[CorpusFile]) -> Iterator[str]:
    """What was asked for and does nothing with these inputs, or something else than it seems."""
    texts = [file.path for file in files if file.kind in ("file", "paragraph", "line")]
    if options.txt_documents != "file" and not texts and options.num_shards == 1:
        yield f"--txt-documents {options.txt_documents} has no effect: no input is a text file"
    if len(options.json_keys) > 1 and texts:
        keys = " ".join(options.json_keys)
        yield f"--json-keys {keys}: text files such as {texts[0]} give the same text for every key"


def _signature(options: PreprocessOptions, tokenizer: Tokenizer, files: list[CorpusFile]) -> str:
    """Of all that decides the output; on_error only where it would have left something else by now."""
    return signature(
        [
            TOOL_VERSION, tokenizer.identity, options.json_keys, options.append_eod, options.prepend_bos,
            options.control_tokens, options.bad_bytes, options.blend_keys, options.on_error, options.txt_documents,
            [[file.path, file.size, file.begin, file.end] for file in files],
        ]
    )  # fmt: skip


def _finished(options: PreprocessOptions, run_signature: str) -> PreprocessReport | None:
    """The report of datasets that an earlier run with the same options has published, None when there are none."""
    if not all(path.exists() for prefix in options.prefixes for path in dataset_paths(prefix)):
        return None
    sidecars = [read_dataset_info(prefix).sidecar or {} for prefix in options.prefixes]
    if any(sidecar.get("run") != run_signature for sidecar in sidecars):
        return None
    first = sidecars[0]
    return PreprocessReport(
        options.prefixes, first["documents"], [sidecar["tokens"] for sidecar in sidecars],
        [sidecar["text_bytes"] for sidecar in sidecars], options.append_eod, first["dtype"],
        skipped=Counter(first["skipped"]), verified="not now (complete since an earlier run)", finished_before=True,
    )  # fmt: skip


def _quarantine_row(bad: BadRecord) -> dict[str, Any]:
    """As text where it is text, in base64 where not."""
    row: dict[str, Any] = {"file": bad.path, "line": bad.line, "reason": bad.reason, "detail": bad.detail}
    try:
        return row | {"record": bad.raw.decode("utf-8")}
    except UnicodeDecodeError:
        return row | {"record_base64": base64.b64encode(bad.raw).decode("ascii")}
