"""A memory trace, from settings to a report: answers, the slots that they read, and who wrote these."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..item_runner import RunOptions, check_run, measure_items, open_log
from ..model_loading import LoadedModel, ModelFacts, inspect_model, load_model
from ..needle.early_checks import check_facts, check_text
from ..needle.fact_kinds import WordFacts
from ..needle.haystack import load_haystack
from ..provenance import provenance
from ..record_log import RecordLog
from ..report_page import name_of_model, write_report
from ..result_files import run_json, write_atomically
from ..text_files import check_text_files, read_text_file
from .memory_trace_record import MemoryTraceRecord
from .memory_trace_settings import MemoryTraceSettings
from .trace_evaluator import MemoryTraceEvaluator, ModelLoader, TraceSource, make_trace_evaluator
from .trace_picture import draw_trace
from .trace_report import report_part
from .trace_results import MemoryTraceResults
from .trace_tables import reads_csv


def inspect_memory(
    settings: MemoryTraceSettings, options: RunOptions, loader: ModelLoader = load_model
) -> MemoryTraceResults:
    """Trace, or continue tracing, and write all outputs. Invalid input is refused before weights are loaded.

    Args:
        settings: what to trace.
        options: how to run.
        loader: gives the model; a top-level function, since every process calls it.

    Raises:
        ValueError: anything a user can fix: model, texts, lengths, output folder of something else.
    """
    check_run(settings.model, options.output, options.workers)
    check_text_files("--haystack" if settings.text is None else "--text", settings.haystack or (settings.text or "",))
    facts = inspect_model(settings.model, options.device)
    if not facts.has_memory:
        raise ValueError(f"--model {settings.model} has no memory layers, so there are no slots to trace")
    source = _source(settings, facts)
    loaded = loader(settings.model, options.device)
    evaluator = MemoryTraceEvaluator(settings, loaded, source)
    log = open_log(options, _identity(settings, loaded, source), MemoryTraceRecord.from_json)
    causality = evaluator.causality()
    if settings.samples == 1 and options.ranks.size == 1:
        finished = [_one_sample(evaluator, log)]
    else:
        finished = measure_items(
            list(range(settings.index, settings.index + settings.samples)), log, evaluator.run,
            evaluator.progress_note, workers=options.workers, make_worker=make_trace_evaluator,
            arguments=(settings, source, loader, options.device),
        )  # fmt: skip
    results = MemoryTraceResults(
        settings, options.model_name or name_of_model(settings.model), tuple(finished), causality,
        provenance(options.command),
    )  # fmt: skip
    write_atomically(options.output / "trace.json", results.to_json())
    write_atomically(options.output / "reads.csv", reads_csv(results))
    write_atomically(options.output / "run.json", run_json(results.provenance, {}))
    write_atomically(options.output / "trace.png", draw_trace(results))
    write_report(report_part(results), options.output)
    return results


def _source(settings: MemoryTraceSettings, facts: ModelFacts) -> TraceSource:
    """The texts, after everything that can be checked without weights."""
    tokenizer, bos = facts.tokenizer, facts.bos
    if settings.text is not None:
        assert settings.prompt is not None
        context, question = tokenizer.encode(read_text_file("--text", settings.text)), tokenizer.encode(settings.prompt)
        if not question:
            raise ValueError("--prompt is empty; give the text to continue")
        begin = [] if bos is None else [bos]
        return TraceSource(None, (np.asarray([*begin, *context], dtype=np.int64), tuple(question)))
    needles = settings.needle_settings()
    haystack = load_haystack(settings.haystack, tokenizer, bos)
    try:
        check_facts(needles, WordFacts.from_config(settings.needle, tokenizer), bos)
        check_text(needles, haystack)
    except ValueError as error:
        raise ValueError(str(error).replace("--lengths", "--length")) from error
    return TraceSource(haystack)


def _one_sample(evaluator: MemoryTraceEvaluator, log: RecordLog[MemoryTraceRecord]) -> MemoryTraceRecord:
    """The record of the only sample, with a bar of its tokens."""
    index = evaluator.settings.index
    if index not in log.records:
        with _reading(len(evaluator.task(index).context) * evaluator.settings.reads) as bar:
            log.append(evaluator.run(index, bar))
    return log.records[index]


def _identity(settings: MemoryTraceSettings, loaded: LoadedModel, source: TraceSource) -> dict[str, object]:
    """What must be equal for samples to belong together; where a file lies does not matter, what is in it does."""
    texts: list[np.ndarray] = [] if source.haystack is None else [source.haystack.tokens]
    texts += [] if source.text is None else [source.text[0], np.asarray(source.text[1], dtype=np.int64)]
    return {
        **settings.decides_a_trace(), "depths": settings.depths, "shown": settings.index, **loaded.identity(),
        "tokens": hashlib.blake2b(np.concatenate(texts).tobytes(), digest_size=16).hexdigest(),
    }  # fmt: skip


class _Bar:
    """Counts the tokens of one context that are read."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar, self._task = bar, bar.add_task("reading", total=total)

    def __call__(self, tokens: int) -> None:
        """So many more."""
        self._bar.advance(self._task, tokens)


@contextmanager
def _reading(total: int) -> Iterator[_Bar]:
    """A bar on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    columns = TextColumn("reading"), BarColumn(), TextColumn("{task.completed:,} of {task.total:,} tokens")
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield _Bar(bar, total)
